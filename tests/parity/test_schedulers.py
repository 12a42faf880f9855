"""The released samplers' trajectories on fixed predictions."""

import pytest
import torch
from diffusers import DDIMScheduler

from realcustom.pipelines.scheduler import RealCustomScheduler, trailing_timesteps

RELATIVE = 1e-5


def runs(reference, kind):
    return [name for name in reference.meta["per_run"] if name.startswith(kind)]


def check_trajectory(reference, max_difference, run, scheduler):
    timesteps = reference[f"{run}/timesteps"].tolist()
    assert scheduler.timesteps.tolist() == timesteps
    expected, clean = reference[f"{run}/prev_sample"], reference[f"{run}/pred_original_sample"]
    sample = reference[f"{run}/sample0"]
    for index, timestep in enumerate(scheduler.timesteps):
        step = scheduler.step(reference[f"{run}/model_outputs"][index], timestep, sample)
        sample = step.prev_sample
        assert max_difference(sample, expected[index]) <= RELATIVE * expected.abs().max()
        assert max_difference(step.pred_original_sample, clean[index]) <= RELATIVE * clean.abs().max()


def test_betas_and_cumulative_alphas(load_reference):
    reference = load_reference("schedulers")
    scheduler = RealCustomScheduler()
    assert torch.equal(scheduler.betas, reference["betas"])
    for run in reference.meta["per_run"]:
        if f"{run}/alphas_cumprod" in reference.tensors:
            torch.testing.assert_close(scheduler.alphas_cumprod, reference[f"{run}/alphas_cumprod"], rtol=0, atol=1e-6)


def test_dpm_trajectories(load_reference, max_difference):
    reference = load_reference("schedulers")
    assert runs(reference, "dpm")
    for run in runs(reference, "dpm"):
        scheduler = RealCustomScheduler(final_clean=False)
        scheduler.set_timesteps(reference.meta["per_run"][run]["steps"])
        check_trajectory(reference, max_difference, run, scheduler)
        # A scheduler is used again without a reset.
        scheduler.set_timesteps(reference.meta["per_run"][run]["steps"])
        check_trajectory(reference, max_difference, run, scheduler)


def test_last_step_returns_the_clean_prediction_that_is_decoded(load_reference, max_difference):
    reference = load_reference("schedulers")
    for run in runs(reference, "dpm"):
        scheduler = RealCustomScheduler()
        scheduler.set_timesteps(reference.meta["per_run"][run]["steps"])
        sample = reference[f"{run}/sample0"]
        for index, timestep in enumerate(scheduler.timesteps):
            sample = scheduler.step(reference[f"{run}/model_outputs"][index], timestep, sample, return_dict=False)[0]
        clean = reference[f"{run}/pred_original_sample"]
        assert max_difference(sample, clean[-1]) <= RELATIVE * clean.abs().max()


def test_ddim_is_the_stock_scheduler(load_reference, max_difference):
    reference = load_reference("schedulers")
    for run in runs(reference, "ddim"):
        steps = reference.meta["per_run"][run]["steps"]
        if 1000 % steps:
            continue  # diffusers then takes the previous timestep as t - 1000 // n, not as the next of the list
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="trailing",
            set_alpha_to_one=True,
            clip_sample=False,
        )
        scheduler.set_timesteps(steps)
        check_trajectory(reference, max_difference, run, scheduler)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_step_counts_are_refused(steps):
    with pytest.raises(ValueError, match="steps"):
        trailing_timesteps(steps)

"""Presets: what they change, how many passes they make, and that what a request says itself wins."""

import numpy as np
import pytest
import torch

from realcustom import Engine, MaskSettings, Request
from realcustom.engine.presets import PRESETS, few_step_solver, preset_named

PROMPT = "a dog on the beach"


class Passes:
    """Counts the U-Net's calls and images."""

    def __init__(self, unet):
        self.calls = self.images = 0
        unet.register_forward_pre_hook(self)

    def __call__(self, module, arguments):
        self.calls += 1
        self.images += arguments[0].shape[0]


@pytest.fixture
def engine(tiny_pipeline):
    return Engine(tiny_pipeline)


@pytest.mark.parametrize("name", ["fast", "turbo"])
def test_a_preset_makes_the_documented_passes_and_finite_images(engine, reference_image, name):
    preset, passes = PRESETS[name], Passes(engine.pipeline.unet)
    own = engine.pipeline.scheduler
    result = engine.run(Request(prompt=PROMPT, subjects={"dog": reference_image}, preset=name))
    settings = preset.mask(MaskSettings(), preset.steps)
    updates = sum(settings.updates(step) for step in range(preset.steps))
    assert passes.images == preset.passes(preset.steps, updates)
    assert passes.calls == preset.steps + updates
    assert result.request.steps == preset.steps
    assert np.asarray(result.images[0]).std() > 0
    assert engine.pipeline.scheduler is own


def test_documented_numbers():
    """As docs/performance.md has them: steps, guidance passes, passes in all."""
    counts = {}
    for name, preset in PRESETS.items():
        steps = preset.steps or 25
        updates = sum(preset.mask(MaskSettings(), steps).updates(step) for step in range(steps))
        counts[name] = (steps, updates, preset.passes(steps, updates))
    assert counts == {"exact": (25, 25, 75), "fast": (14, 5, 31), "turbo": (6, 2, 13)}


def test_exact_is_the_default_and_changes_nothing(engine, reference_image):
    call = {"prompt": PROMPT, "subjects": {"dog": reference_image}, "steps": 2}
    plain = engine.run(Request(**call)).images[0]
    assert np.array_equal(plain, engine.run(Request(**call, preset="exact")).images[0])
    direct = engine.pipeline(
        PROMPT, {"dog": reference_image}, num_inference_steps=2, generator=torch.Generator().manual_seed(0)
    )
    assert np.array_equal(plain, direct.images[0])


def test_what_the_request_says_wins(engine, reference_image):
    passes = Passes(engine.pipeline.unet)
    request = Request(prompt=PROMPT, subjects={"dog": reference_image}, preset="turbo", steps=3)
    assert engine.run(request).request.steps == 3
    assert passes.calls == 3 + 1


def test_unknown_presets_and_intervals_are_refused(engine, tiny_pipeline, reference_image):
    with pytest.raises(ValueError, match="exact, fast, turbo"):
        engine.resolve(Request(prompt=PROMPT, preset="quick"))
    with pytest.raises(ValueError, match="exact, fast, turbo"):
        preset_named("")
    with pytest.raises(ValueError, match="interval"):
        tiny_pipeline(PROMPT, {"dog": reference_image}, guidance_interval=(0.5, 0.5))


def test_a_preset_without_subjects_is_plain_text_to_image_with_its_steps(engine):
    passes = Passes(engine.pipeline.unet)
    engine.run(Request(prompt=PROMPT, preset="turbo"))
    assert passes.calls == PRESETS["turbo"].steps


def test_solver_keeps_the_noise_schedule(tiny_pipeline):
    solver = few_step_solver(tiny_pipeline.scheduler)
    torch.testing.assert_close(solver.alphas_cumprod, tiny_pipeline.scheduler.alphas_cumprod)
    assert solver.config.prediction_type == tiny_pipeline.scheduler.config.prediction_type

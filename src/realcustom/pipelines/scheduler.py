"""The sampler of the RealCustom++ release as a diffusers scheduler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DPMSolverSinglestepScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput


@dataclass
class CleanSchedulerOutput(SchedulerOutput):
    """`prev_sample` and the clean-sample prediction of the step, both (B, C, h, w)."""

    pred_original_sample: torch.Tensor | None = None


def trailing_timesteps(steps: int, train_timesteps: int = 1000) -> np.ndarray:
    """Timesteps T - 1, T - 1 - T/n, ... of n steps, 1 subtracted before they are rounded half to even.

    Raises:
        ValueError: fewer than one step or more than there are timesteps.
    """
    if not 1 <= steps <= train_timesteps:
        raise ValueError(f"{steps} steps asked for; the model was trained with {train_timesteps}, so 1 to that many.")
    return np.round(train_timesteps - np.arange(steps) * (train_timesteps / steps) - 1).astype(np.int64)


class RealCustomScheduler(DPMSolverSinglestepScheduler):
    """Single-step DPM-Solver++ (midpoint, order 2) whose first two steps are of first order: 1, 1, 2, 1, 2, ...

    The stock single-step solver alternates from the start (1, 2, 1, 2, ...). The release decodes the clean-sample
    prediction of its last step; with `final_clean` that is what the last step returns as its sample.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        prediction_type: str = "epsilon",
        final_clean: bool = True,
    ):
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            prediction_type=prediction_type,
            algorithm_type="dpmsolver++",
            solver_type="midpoint",
            solver_order=2,
            lower_order_final=True,
            final_sigmas_type="sigma_min",
        )

    def get_order_list(self, num_inference_steps: int) -> list[int]:
        """1, 1, 2, 1, 2, ...: the order of each step."""
        return [1 if index == 0 or index % 2 else 2 for index in range(num_inference_steps)]

    def set_timesteps(self, num_inference_steps=None, device=None, mu=None, timesteps=None):
        """Trailing timesteps, unless a list is given."""
        if timesteps is None:
            timesteps = trailing_timesteps(num_inference_steps, self.config.num_train_timesteps).tolist()
        super().set_timesteps(device=device, mu=mu, timesteps=timesteps)

    def step(self, model_output, timestep, sample, generator=None, return_dict: bool = True, **kwargs):
        """One step; (B, C, h, w) each. The output also carries the clean-sample prediction."""
        if self.step_index is None:
            self._init_step_index(timestep)
        last = self.step_index == len(self.timesteps) - 1
        stepped = super().step(model_output, timestep, sample, generator=generator, return_dict=False)[0]
        clean = self.model_outputs[-1]
        if last and self.config.final_clean:
            stepped = clean.to(stepped.dtype)
        if not return_dict:
            return (stepped,)
        return CleanSchedulerOutput(prev_sample=stepped, pred_original_sample=clean)

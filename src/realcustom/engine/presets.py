"""`exact`, `fast` and `turbo`: documented sets of ordinary options, for those who would rather name a speed.

A preset fills in what a request leaves open; whatever the request says itself wins. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from realcustom.guidance.mask import MaskSettings


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Options under one name.

    Attributes:
        steps: denoising steps; None is the model's own number.
        mask_share: share of the steps, from the first, in which the guidance mask is still computed anew.
        mask_interval: steps between two computations of the mask.
        guidance_interval: shares of the steps between which the negative pass is made.
        solver: whether the multistep DPM-Solver++ (Lu et al. 2022), which needs few steps, replaces the scheduler.
    """

    steps: int | None = None
    mask_share: float = 1.0
    mask_interval: int = 1
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    solver: bool = False

    def mask(self, settings: MaskSettings, steps: int) -> MaskSettings:
        """The mask's settings in a run of so many steps: `settings`, updated as the preset says where it says so."""
        if self.mask_share == 1 and self.mask_interval == 1:
            return settings
        from realcustom.guidance.mask import Updates

        until = max(1, math.ceil(self.mask_share * steps)) if self.mask_share < 1 else None
        return replace(settings, updates=Updates(until=until, interval=self.mask_interval))

    def passes(self, steps: int, updates: int) -> int:
        """U-Net passes for one image: `updates` of the guidance branch, one a step with the reference and one in the
        guidance interval with the negative prompt."""
        low, high = self.guidance_interval
        return updates + steps + sum(low <= step / steps < high for step in range(steps))

    @contextmanager
    def scheduled(self, pipeline) -> Iterator[None]:
        """The preset's scheduler in a pipeline for a while; its own comes back whatever happens."""
        own = pipeline.scheduler
        if self.solver:
            pipeline.scheduler = few_step_solver(own)
        try:
            yield
        finally:
            pipeline.scheduler = own


def few_step_solver(scheduler):
    """diffusers' multistep DPM-Solver++ of second order on the noise schedule of another scheduler.

    Flow matching has straight paths, on which Euler's few steps do: its scheduler stays.
    """
    if "beta_schedule" not in scheduler.config:
        return scheduler
    from diffusers import DPMSolverMultistepScheduler

    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    config = {name: scheduler.config[name] for name in names if name in scheduler.config}
    return DPMSolverMultistepScheduler(
        **config, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing", lower_order_final=True
    )


PRESETS = {
    "exact": Preset(),
    "fast": Preset(steps=14, mask_share=0.6, mask_interval=2, guidance_interval=(0.0, 0.8), solver=True),
    "turbo": Preset(steps=6, mask_share=0.5, mask_interval=2, guidance_interval=(0.0, 0.7), solver=True),
}
DEFAULT = "exact"


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: there is none; the sentence lists those there are.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f'There is no preset "{name}"; there are {", ".join(PRESETS)}.')
    return PRESETS[name]

"""The two guidance formulas. Each is a small object that says which predictions it needs and combines them.

eps_neg: negative prompt; eps_T: text only (the guidance branch); eps_TI: text, reference and mask.

Both may be confined to an interval of the denoising, given as shares of the steps (Kynkaanniemi et al. 2024, "Applying
guidance in a limited interval"): outside it eps = eps_TI, and no negative pass is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

Interval = tuple[float, float]
EVERYWHERE: Interval = (0.0, 1.0)


def inside(interval: Interval, share: float) -> bool:
    """Whether a share in [0, 1) lies in [low, high)."""
    return interval[0] <= share < interval[1]


@dataclass(frozen=True)
class SingleScale:
    """eps = eps_neg + w (eps_TI - eps_neg): the RealCustom++ release."""

    scale: float = 3.5
    interval: Interval = EVERYWHERE

    @property
    def needs_negative(self) -> bool:
        """As in diffusers, w <= 1 means no guidance: one pass a step, the prompt and the subject as they are."""
        return self.scale > 1

    def with_scale(self, scale: float) -> SingleScale:
        """The same formula with another w."""
        return replace(self, scale=scale)

    def negative_at(self, share: float) -> bool:
        """Whether the negative pass runs when `share` of the steps is done."""
        return self.needs_negative and inside(self.interval, share)

    def text_at(self, share: float) -> bool:
        """Whether the text-only prediction is read then."""
        return False

    def combine(self, negative: torch.Tensor | None, text: torch.Tensor | None, full: torch.Tensor) -> torch.Tensor:
        """Predictions (B, C, h, w) to the guided one."""
        return full if negative is None else negative + self.scale * (full - negative)


@dataclass(frozen=True)
class EmbeddedScale(SingleScale):
    """Single scale for a network that is told its guidance scale besides: `scale` is the true one, 1 for one pass.

    A step callback that changes the pipeline's guidance scale means the embedded one, not this.
    """

    scale: float = 1.0

    def with_scale(self, scale: float) -> EmbeddedScale:
        """The same."""
        return self


@dataclass(frozen=True)
class TextAndImageScale:
    """eps = eps_neg + w_t (eps_T - eps_neg) + w_i (eps_TI - eps_T): RealCustom Eq. 13."""

    text_scale: float = 7.5
    image_scale: float = 12.5
    interval: Interval = EVERYWHERE

    @property
    def needs_negative(self) -> bool:
        """All three predictions are needed."""
        return True

    def with_scale(self, scale: float) -> SingleScale | TextAndImageScale:
        """The same formula with another w_t; w_t <= 1 means no guidance at all, as in diffusers."""
        return replace(self, text_scale=scale) if scale > 1 else SingleScale(1.0, self.interval)

    def negative_at(self, share: float) -> bool:
        """Whether the negative pass runs when `share` of the steps is done."""
        return inside(self.interval, share)

    def text_at(self, share: float) -> bool:
        """Whether the text-only prediction is read then."""
        return inside(self.interval, share)

    def combine(self, negative: torch.Tensor | None, text: torch.Tensor | None, full: torch.Tensor) -> torch.Tensor:
        """Predictions (B, C, h, w) to the guided one."""
        if negative is None:
            return full
        return negative + self.text_scale * (text - negative) + self.image_scale * (full - text)


@dataclass(frozen=True)
class Rescaled:
    """Another formula, its result brought nearer to the standard deviation of eps_TI (Lin et al. 2024, Sec. 3.4).

    Attributes:
        guidance: the formula.
        share: 0 changes nothing, 1 takes the standard deviation of eps_TI.
    """

    guidance: SingleScale | TextAndImageScale
    share: float

    @property
    def needs_negative(self) -> bool:
        """As the formula."""
        return self.guidance.needs_negative

    def with_scale(self, scale: float) -> Rescaled:
        """The same formula with another text scale."""
        return replace(self, guidance=self.guidance.with_scale(scale))

    def negative_at(self, share: float) -> bool:
        """As the formula."""
        return self.guidance.negative_at(share)

    def text_at(self, share: float) -> bool:
        """As the formula."""
        return self.guidance.text_at(share)

    def combine(self, negative: torch.Tensor | None, text: torch.Tensor | None, full: torch.Tensor) -> torch.Tensor:
        """Predictions (B, C, h, w) to the guided one."""
        from diffusers.guiders.guider_utils import rescale_noise_cfg

        guided = self.guidance.combine(negative, text, full)
        return guided if negative is None else rescale_noise_cfg(guided, full, self.share)


Guidance = SingleScale | TextAndImageScale | Rescaled


def choose_guidance(
    guidance_scale: float,
    image_guidance_scale: float | None = None,
    interval: Interval = EVERYWHERE,
    rescale: float = 0.0,
) -> Guidance:
    """RealCustom Eq. 13 when an image scale is given, else the release's single scale.

    Raises:
        ValueError: a scale is no number from 0 on, or the interval is empty or not within 0 and 1.
    """
    for name, scale in (("guidance_scale", guidance_scale), ("image_guidance_scale", image_guidance_scale)):
        if scale is not None and not 0 <= scale < math.inf:
            raise ValueError(f"{name} is {scale}; it is a finite number from 0 on.")
    low, high = interval
    if not 0 <= low < high <= 1:
        raise ValueError(f"The guidance interval is {low} to {high}; it lies within 0 and 1, the lower end first.")
    if image_guidance_scale is None:
        guidance = SingleScale(guidance_scale, (low, high))
    else:
        guidance = TextAndImageScale(guidance_scale, image_guidance_scale, (low, high))
    return Rescaled(guidance, rescale) if rescale else guidance

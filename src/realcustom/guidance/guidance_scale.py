"""The two guidance formulas. Each is a small object that says which predictions it needs and combines them.

eps_neg: negative prompt; eps_T: text only (the guidance branch); eps_TI: text, reference and mask.

Both may be confined to an interval of the denoising, given as shares of the steps (Kynkaanniemi et al. 2024, "Applying
guidance in a limited interval"): outside it eps = eps_TI, and no negative pass is made.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        """At w = 1 the negative prediction cancels out."""
        return self.scale != 1

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
class TextAndImageScale:
    """eps = eps_neg + w_t (eps_T - eps_neg) + w_i (eps_TI - eps_T): RealCustom Eq. 13."""

    text_scale: float = 7.5
    image_scale: float = 12.5
    interval: Interval = EVERYWHERE

    needs_negative = True

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


Guidance = SingleScale | TextAndImageScale

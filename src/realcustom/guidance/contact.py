"""A mask rule that leaves no position without a reference: feet that stand and shadows that fall lie outside a mask."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from realcustom.guidance.mask import INELIGIBLE, MaskRule, SoftMask, fresh


@dataclass(frozen=True)
class StrongestOutside:
    """A mask rule: another rule's masks, and outside all of them the subject whose word is strongest there.

    A strict mask cuts contact and shadow off. Here they may take the nearest subject's looks, and never another's. With
    a single subject nothing is masked any more.

    Attributes:
        rule: what makes the masks.
        level: value of the mask outside, in (0, 1].
    """

    rule: MaskRule = field(default_factory=SoftMask)
    level: float = 1.0

    def __post_init__(self):
        if not 0 < self.level <= 1:
            raise ValueError(f"The level outside all masks is {self.level}; it lies above 0 and at most at 1.")

    def fresh(self) -> StrongestOutside:
        """The same rule, its inner one without a memory."""
        return StrongestOutside(fresh(self.rule), self.level)

    def __call__(self, scores: torch.Tensor, scope: float) -> torch.Tensor:
        """Scores (B, S, G, g) to masks."""
        masks = self.rule(scores, scope)
        outside = masks.amax(dim=1, keepdim=True) <= 0
        strongest = (scores == scores.amax(dim=1, keepdim=True)) & (scores > INELIGIBLE)
        return torch.where(outside & strongest, torch.full_like(masks, self.level), masks)

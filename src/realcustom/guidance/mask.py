"""Adaptive mask guidance: from averaged word maps to the guidance mask (RealCustom Eq. 11; RealCustom++ AMG).

Shapes: B images, S subjects, (G, g) the mask's grid. Scores and masks are (B, S, G, g) float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from einops import rearrange

EPSILON = 1e-6  # the release's; keeps the largest value a little under 1
INELIGIBLE = -1.0  # score of a position that a subject may not fill, below every other


def divide_by_max(maps: torch.Tensor) -> torch.Tensor:
    """Each map divided by its maximum (RealCustom Eq. 11)."""
    return maps / (maps.amax(dim=(-2, -1), keepdim=True) + EPSILON)


def min_max(maps: torch.Tensor) -> torch.Tensor:
    """Each map stretched from its minimum to its maximum."""
    low = maps.amin(dim=(-2, -1), keepdim=True)
    return (maps - low) / (maps.amax(dim=(-2, -1), keepdim=True) - low + EPSILON)


@dataclass(frozen=True)
class Normalisation:
    """How maps become scores: `layer` is applied to each layer's map before the mean, `overall` after it."""

    layer: Callable[[torch.Tensor], torch.Tensor] | None = None
    overall: Callable[[torch.Tensor], torch.Tensor] | None = None


NORMALISATIONS = {
    "max": Normalisation(None, divide_by_max),
    "min-max": Normalisation(None, min_max),
    "min-max-per-layer": Normalisation(min_max, min_max),
}


def largest_share(scores: torch.Tensor, scope: float) -> torch.Tensor:
    """Boolean: the int(cells * scope) largest scores of each map (gamma_scope), at least one."""
    flat = rearrange(scores, "b s h w -> b s (h w)")
    indices = flat.topk(max(1, int(flat.shape[-1] * scope)), dim=-1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter(-1, indices, True).view_as(scores)


def above_threshold(scores: torch.Tensor, scope: float) -> torch.Tensor:
    """Boolean: scores above 1 - scope."""
    return scores > 1 - scope


MaskRule = Callable[[torch.Tensor, float], torch.Tensor]
"""(scores, scope) -> masks in [0, 1], both (B, S, G, g); scores are `INELIGIBLE` where a subject may not be.

A rule with a memory of earlier steps has a method `fresh() -> MaskRule`, called once for every image or batch.
"""


@dataclass(frozen=True)
class SoftMask:
    """A mask rule: the scores themselves, where `keep` keeps them."""

    keep: Callable[[torch.Tensor, float], torch.Tensor] = largest_share

    def __call__(self, scores: torch.Tensor, scope: float) -> torch.Tensor:
        """Scores (B, S, G, g) to masks."""
        return scores.clamp(min=0) * self.keep(scores, scope)


@dataclass(frozen=True)
class BinaryMask:
    """A mask rule: 1 where `keep` keeps a score."""

    keep: Callable[[torch.Tensor, float], torch.Tensor] = largest_share

    def __call__(self, scores: torch.Tensor, scope: float) -> torch.Tensor:
        """Scores (B, S, G, g) to masks."""
        return (self.keep(scores, scope) & (scores > INELIGIBLE)).to(scores.dtype)


@dataclass
class AveragedMask:
    """A mask rule: another rule on the exponential average of the scores over the steps, which steadies the mask.

    Attributes:
        rule: what makes the mask of the averaged scores.
        decay: share of the average that stays at each update, in [0, 1).
    """

    rule: MaskRule = field(default_factory=SoftMask)
    decay: float = 0.5
    _average: torch.Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise ValueError(f"The decay of an averaged mask is {self.decay}; it lies in [0, 1).")

    def fresh(self) -> AveragedMask:
        """The same rule without a memory."""
        return AveragedMask(self.rule, self.decay)

    def __call__(self, scores: torch.Tensor, scope: float) -> torch.Tensor:
        """Scores (B, S, G, g) of the next step to masks."""
        if self._average is None:
            self._average = scores
        average = torch.lerp(scores, self._average, self.decay)
        # A position that a subject lost to another, or regained, counts by what it is now.
        settled = (scores > INELIGIBLE) & (self._average > INELIGIBLE)
        self._average = torch.where(settled, average, scores)
        return self.rule(self._average, scope)


RULES: dict[str, MaskRule] = {
    "top-share": SoftMask(),
    "top-share-binary": BinaryMask(),
    "threshold": SoftMask(above_threshold),
    "threshold-binary": BinaryMask(above_threshold),
}


def fresh(rule: MaskRule) -> MaskRule:
    """The rule as a new image needs it: without what an earlier one left in its memory."""
    return rule.fresh() if hasattr(rule, "fresh") else rule


@dataclass(frozen=True, kw_only=True)
class Updates:
    """At which denoising steps the mask is computed anew: (step, 0-based) -> bool. The first step always is one.

    Attributes:
        until: before this step; from it on the mask is frozen. None for always.
        interval: steps between two updates.

    Raises:
        ValueError: a value below 1.
    """

    until: int | None = None
    interval: int = 1

    def __post_init__(self):
        if self.interval < 1 or (self.until is not None and self.until < 1):
            raise ValueError("The mask is updated at least once: until and interval start at 1.")

    def __call__(self, step: int) -> bool:
        """Whether the guidance branch runs at `step`."""
        return step % self.interval == 0 and (self.until is None or step < self.until)


def eligible(scores: torch.Tensor, regions: torch.Tensor | None) -> torch.Tensor:
    """Boolean (B, S, G, g): where each subject may be.

    Of several subjects the one with the higher score wins the position, the first one on a tie; a region excludes
    what lies outside it before they compete.
    """
    allowed = torch.ones_like(scores, dtype=torch.bool) if regions is None else (regions > 0).expand_as(scores)
    if scores.shape[1] == 1:
        return allowed
    winner = torch.where(allowed, scores, torch.full_like(scores, INELIGIBLE)).argmax(dim=1, keepdim=True)
    index = torch.arange(scores.shape[1], device=scores.device).view(1, -1, 1, 1)
    return allowed & (winner == index)


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """Everything that shapes the guidance mask.

    Attributes:
        scope: gamma_scope in (0, 1], the share of positions a subject may fill.
        normalisation: how maps become scores; `NORMALISATIONS` has RealCustom's Eq. 11 and the release's.
        rule: (scores, scope) -> mask, see `MaskRule`; `RULES` has the usual ones.
        updates: (step) -> whether the mask is computed anew.
        word_levels: levels of the word maps (0 is the latent's resolution, 1 half of it ...); None for all.
        spread: how often the self-attention matrix spreads the word maps (RealCustom++ figure); 0 for never.
        spread_levels: levels of the self-attention layers; None for the finest level that has attention.
        lagged: from the second step on the guidance branch rides in the batch of the generation branch, and the mask
            it gives serves the next step: one pass a step instead of two in sequence.
        stride: the guidance branch sees every n-th row and column of the latents.

    Raises:
        ValueError: a value outside its range.
    """

    scope: float = 0.25
    normalisation: Normalisation = NORMALISATIONS["min-max-per-layer"]
    rule: MaskRule = RULES["top-share"]
    updates: Callable[[int], bool] = field(default_factory=Updates)
    word_levels: tuple[int, ...] | None = None
    spread: int = 1
    spread_levels: tuple[int, ...] | None = None
    lagged: bool = False
    stride: int = 1

    def __post_init__(self):
        if not 0 < self.scope <= 1:
            raise ValueError(f"The mask scope is {self.scope}; it is a share of the image, above 0 and at most 1.")
        for name in ("rule", "updates"):
            if not callable(getattr(self, name)):
                raise ValueError(f"The mask's {name} is {getattr(self, name)!r}; it is a function.")
        if not isinstance(self.normalisation, Normalisation):
            raise ValueError(f"The mask's normalisation is {self.normalisation!r}; it is a Normalisation.")
        if self.spread < 0:
            raise ValueError(f"The mask's spread is {self.spread}; it counts applications, from 0 on.")
        if self.stride < 1 or (self.stride > 1 and self.lagged):
            raise ValueError("The mask's stride starts at 1, and a lagged mask has none: its branch shares a batch.")


def guidance_mask(
    maps: torch.Tensor,
    settings: MaskSettings,
    spread: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    regions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean word maps to masks.

    Args:
        maps: (B, S, G, g), mean over layers of the target words' maps, each already normalised where the
            settings' normalisation works per layer.
        settings: what to do with them.
        spread: applies the self-attention of the same pass: (maps, power) -> maps; None leaves it out.
        regions: (B or 1, S, G, g) in [0, 1], where each subject may be; None for anywhere.

    Returns:
        (B, S, G, g) in [0, 1]; 0 outside each subject's mask, and of several subjects at most one is above 0
        at a position.
    """
    if spread is not None and settings.spread:
        maps = spread(maps, settings.spread)
    overall = settings.normalisation.overall
    scores = maps if overall is None else overall(maps)
    if regions is not None:
        scores = scores * regions
    allowed = eligible(scores, regions)
    return settings.rule(torch.where(allowed, scores, torch.full_like(scores, INELIGIBLE)), settings.scope) * allowed

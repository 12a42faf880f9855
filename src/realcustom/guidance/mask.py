"""Adaptive mask guidance: from averaged word maps to the guidance mask (RealCustom Eq. 11; RealCustom++ AMG).

Shapes: B images, S subjects, (G, g) the mask's grid. Scores and masks are (B, S, G, g) float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange

EPSILON = 1e-6  # the release's; keeps the largest value a little under 1


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

    layer: Callable[[torch.Tensor], torch.Tensor] | None
    overall: Callable[[torch.Tensor], torch.Tensor] | None


NORMALISATIONS = {
    "max": Normalisation(None, divide_by_max),
    "min-max": Normalisation(None, min_max),
    "min-max-per-layer": Normalisation(min_max, min_max),
}


def keep_top_share(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Boolean: the int(cells * share) largest scores of each map (gamma_scope)."""
    flat = rearrange(scores, "b s h w -> b s (h w)")
    indices = flat.topk(int(flat.shape[-1] * share), dim=-1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter(-1, indices, True).view_as(scores)


def keep_above(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Boolean: scores above 1 - share."""
    return scores > 1 - share


SELECTIONS = {"top-share": keep_top_share, "threshold": keep_above}


def eligible(scores: torch.Tensor, regions: torch.Tensor | None) -> torch.Tensor:
    """Boolean (B, S, G, g): where each subject may be.

    Of several subjects the one with the higher score wins the position, the first one on a tie; a region excludes
    what lies outside it before they compete.
    """
    allowed = torch.ones_like(scores, dtype=torch.bool) if regions is None else (regions > 0).expand_as(scores)
    if scores.shape[1] == 1:
        return allowed
    winner = torch.where(allowed, scores, torch.full_like(scores, -1)).argmax(dim=1, keepdim=True)
    index = torch.arange(scores.shape[1], device=scores.device).view(1, -1, 1, 1)
    return allowed & (winner == index)


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """Everything that shapes the guidance mask.

    Attributes:
        scope: gamma_scope in (0, 1], the share of positions a subject may fill.
        normalisation: "max" (RealCustom Eq. 11), "min-max" or "min-max-per-layer" (the release).
        selection: "top-share" keeps the `scope` largest, "threshold" all above 1 - scope.
        binary: 1 instead of the scores inside the mask.
        word_levels: U-Net levels of the word maps (0 is the latent's resolution, 1 half of it ...); None for all.
        spread: how often the self-attention matrix spreads the word maps (RealCustom++ figure); 0 for never.
        spread_levels: levels of the self-attention layers; None for the finest level that has attention.
        update_until: the mask is computed anew before this step (0-based) and frozen from it on; None for always.
        update_interval: steps between two computations of the mask.
        lagged: from the second step on the guidance branch rides in the batch of the generation branch, and the mask
            it gives serves the next step: one pass a step instead of two in sequence.
        stride: the guidance branch sees every n-th row and column of the latents.

    Raises:
        ValueError: a value outside its range.
    """

    scope: float = 0.25
    normalisation: str = "min-max-per-layer"
    selection: str = "top-share"
    binary: bool = False
    word_levels: tuple[int, ...] | None = None
    spread: int = 1
    spread_levels: tuple[int, ...] | None = None
    update_until: int | None = None
    update_interval: int = 1
    lagged: bool = False
    stride: int = 1

    def __post_init__(self):
        if not 0 < self.scope <= 1:
            raise ValueError(f"The mask scope is {self.scope}; it is a share of the image, above 0 and at most 1.")
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(f'No mask normalisation "{self.normalisation}"; there are {", ".join(NORMALISATIONS)}.')
        if self.selection not in SELECTIONS:
            raise ValueError(f'No mask selection "{self.selection}"; there are {", ".join(SELECTIONS)}.')
        if self.spread < 0:
            raise ValueError(f"The mask's spread is {self.spread}; it counts applications, from 0 on.")
        if self.update_interval < 1 or (self.update_until is not None and self.update_until < 1):
            raise ValueError("The mask is updated at least once: update_until and update_interval start at 1.")
        if self.stride < 1 or (self.stride > 1 and self.lagged):
            raise ValueError("The mask's stride starts at 1, and a lagged mask has none: its branch shares a batch.")

    def updates(self, step: int) -> bool:
        """Whether the guidance branch runs at `step` (0-based)."""
        return step % self.update_interval == 0 and (self.update_until is None or step < self.update_until)


def released_settings(**changes) -> MaskSettings:
    """The released pipeline's mask: no self-attention, frozen from step 12 on."""
    return MaskSettings(**{"spread": 0, "update_until": 12, **changes})


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
    overall = NORMALISATIONS[settings.normalisation].overall
    scores = maps if overall is None else overall(maps)
    if regions is not None:
        scores = scores * regions
    allowed = eligible(scores, regions)
    kept = SELECTIONS[settings.selection](torch.where(allowed, scores, torch.full_like(scores, -1)), settings.scope)
    kept = kept & allowed
    return kept.to(scores.dtype) if settings.binary else scores * kept

"""The release's refinement of word maps by whole self-attention matrices (supported there, never fed).

Shapes: B images, S subjects, (G, g) the mask's grid, cells = G * g.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange


def max_per_sample(matrices: torch.Tensor) -> torch.Tensor:
    """(B, maps, n, n) divided by the largest value of each sample."""
    return matrices / (matrices.amax(dim=(-3, -2, -1), keepdim=True) + 1e-10)


def min_max_per_map(matrices: torch.Tensor) -> torch.Tensor:
    """(B, maps, n, n), each map stretched from its minimum to its maximum."""
    low = matrices.amin(dim=(-2, -1), keepdim=True)
    return (matrices - low) / (matrices.amax(dim=(-2, -1), keepdim=True) - low + 1e-6)


def matrix_spread(
    self_maps: Sequence[torch.Tensor], cells: int, normalise: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """A `spread` for `guidance_mask` from self-attention matrices of several layers.

    Args:
        self_maps: per layer (B, H, n, n) probabilities.
        cells: positions of the mask's grid; every matrix is resized to cells x cells.
        normalise: applied to the resized maps of all heads of all layers (B, maps, cells, cells) before their mean.

    Returns:
        (maps (B, S, G, g), power) -> (B, S, G, g).
    """
    resized = [F.interpolate(matrix, size=(cells, cells), mode="bilinear", align_corners=False) for matrix in self_maps]
    matrices = torch.cat(resized, dim=1)
    mean = (matrices if normalise is None else normalise(matrices)).mean(dim=1)

    def spread(maps: torch.Tensor, power: int) -> torch.Tensor:
        flat = rearrange(maps, "b s h w -> b (h w) s")
        for _ in range(power):
            flat = mean @ flat
        return rearrange(flat, "b (h w) s -> b s h w", h=maps.shape[-2])

    return spread

"""What one guidance pass records: the target words' cross-attention and the means to spread it.

Shapes: B images, S subjects, T text tokens, H heads, N = h * w positions of a layer, d channels of a head,
(G, g) rows and columns of the common grid.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from einops import rearrange

Size = tuple[int, int]


def word_maps(query: torch.Tensor, key: torch.Tensor, token_weights: torch.Tensor, scale: float) -> torch.Tensor:
    """Softmax cross-attention of the target tokens, mean over heads, sum over tokens.

    Args:
        query: (B, H, N, d).
        key: (B, H, T, d), the text's keys.
        token_weights: (B, S, T), 1 at a subject's target tokens, else 0.
        scale: factor of the logits, 1 / sqrt(d).

    Returns:
        (B, S, N) float32, each value in [0, number of target tokens].
    """
    heads = query.shape[1]
    total = 0
    # One head at a time: only (N, T) logits live at once, and only S of their columns survive.
    for head in range(heads):
        logits = (query[:, head] @ key[:, head].transpose(-1, -2)).float() * scale
        total = total + logits.softmax(dim=-1) @ token_weights.float().transpose(-1, -2)
    return rearrange(total / heads, "b n s -> b s n")


def resize(maps: torch.Tensor, size: Size) -> torch.Tensor:
    """Bilinear resize of (B, S, h, w) maps to `size` rows and columns (half-pixel centres, no antialiasing)."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def check_levels(wanted: Collection[int] | None, present: Collection[int], kind: str) -> None:
    """Refuse levels none of which has a layer; `wanted` None are all.

    Raises:
        ValueError: names the levels there are.
    """
    if wanted is not None and not set(wanted) & set(present):
        raise ValueError(
            f"No {kind}-attention layer lies on the mask's levels {sorted(wanted)}; there are {sorted(set(present))}."
        )


class WordMaps:
    """Running mean of the target words' maps over the cross-attention layers of one pass.

    Each layer is reduced as it comes, so memory grows neither with the prompt nor with the number of layers.
    """

    def __init__(
        self,
        token_weights: torch.Tensor,
        grid: Size,
        normalise_layer: Callable[[torch.Tensor], torch.Tensor] | None = None,
        levels: Collection[int] | None = None,
    ):
        """
        Args:
            token_weights: (B, S, T), 1 at target tokens.
            grid: rows and columns of the common grid.
            normalise_layer: applied to every resized map (B, S, G, g) before the mean.
            levels: U-Net levels whose layers take part (0 is the latent's resolution); None for all.
        """
        self.token_weights = token_weights
        self.grid = tuple(grid)
        self.normalise_layer = normalise_layer
        self.levels = levels
        # Tensors both, and no list or count: code compiled for one layer then serves them all.
        self._sum = torch.zeros((), device=token_weights.device)
        self._layers = torch.zeros((), device=token_weights.device)

    def add(self, query: torch.Tensor, key: torch.Tensor, scale: float, size: Size, level: int) -> None:
        """Take the attention of one layer: query (., H, N, d), key (., H, T, d), its h x w and its level.

        Only the last B images of a pass count: others, with references, may precede them.
        """
        if self.levels is not None and level not in self.levels:
            return
        images = self.token_weights.shape[0]
        maps = word_maps(query[-images:], key[-images:], self.token_weights, scale)
        self.add_maps(rearrange(maps, "b s (h w) -> b s h w", h=size[0]))

    def add_maps(self, maps: torch.Tensor) -> None:
        """Take one layer's finished maps (B, S, h, w)."""
        maps = resize(maps, self.grid)
        if self.normalise_layer is not None:
            maps = self.normalise_layer(maps)
        self._sum = self._sum + maps
        self._layers = self._layers + 1

    def mean(self) -> torch.Tensor:
        """(B, S, G, g) mean over the layers taken.

        Not a number where no layer was taken, which `check_levels` tells without waiting for a GPU.
        """
        return self._sum / self._layers


class SelfMaps:
    """Self-attention of the chosen layers, kept as queries and keys and applied without forming the N x N matrices.

    A full matrix at 1024 px has 4096 x 4096 entries a head; queries and keys of a layer have 4096 x d.
    """

    def __init__(self, levels: Collection[int]):
        self.levels = levels
        self._layers: list[tuple[torch.Tensor, torch.Tensor, float, Size]] = []

    def add(self, query: torch.Tensor, key: torch.Tensor, scale: float, size: Size, level: int) -> None:
        """Keep one layer's query and key (B, H, N, d)."""
        if level in self.levels:
            self._layers.append((query, key, scale, size))

    def spread(self, maps: torch.Tensor, power: int = 1) -> torch.Tensor:
        """Mean over layers and heads of A^power @ maps, A the layer's self-attention matrix.

        Args:
            maps: (B, S, G, g).
            power: how often the matrix is applied.

        Returns:
            (B, S, G, g).

        Raises:
            ValueError: no layer was recorded.
        """
        if not self._layers:
            raise ValueError(f"No self-attention layer lies on the mask's levels {sorted(self.levels)}.")
        grid = tuple(maps.shape[-2:])
        for _ in range(power):
            total = 0
            for query, key, scale, size in self._layers:
                total = total + resize(_attend(query, key, resize(maps, size), scale), grid)
            maps = total / len(self._layers)
        return maps


def _attend(query: torch.Tensor, key: torch.Tensor, maps: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention with the maps (B, S, h, w) as values, mean over heads: (B, S, h, w)."""
    batch, heads, positions, width = query.shape
    subjects, rows = maps.shape[1], maps.shape[-2]
    values = rearrange(maps, "b s h w -> b 1 (h w) s").to(query.dtype)
    # Fused kernels want values as wide as the keys.
    values = F.pad(values, (0, width - subjects)).expand(batch, heads, positions, width)
    out = F.scaled_dot_product_attention(query, key, values, scale=scale)[..., :subjects]
    return rearrange(out.float().mean(dim=1), "b (h w) s -> b s h w", h=rows)

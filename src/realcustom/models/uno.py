"""UNO's tokens: latents cut into patches, and where the references stand beside the image (arXiv 2504.02160, Sec. 3).

A reference is a clean latent of its own size. Its patches follow those of the image in the sequence, and rotary
positions beyond the image's keep the two apart (the paper's universal rotary position embedding).

Shapes: B images, C channels, (h, w) a latent's size, (r, c) = (h / 2, w / 2) its rows and columns of patches,
N = r * c patches of the image, n of a reference, D = 4 * C. A position is (0, row, column); text is all zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from einops import rearrange

Size = tuple[int, int]
Place = Callable[[Size], Size]
"""Where a reference starts: from the corner (rows, columns) beyond the image and all references before it."""

PATCH = 2  # latent rows and columns a patch


def diagonal(corner: Size) -> Size:
    """Below and to the right of all before it: UNO's own, in which no row and no column is shared."""
    return corner


def below(corner: Size) -> Size:
    """In rows of its own; columns are shared with the image."""
    return corner[0], 0


def beside(corner: Size) -> Size:
    """In columns of its own; rows are shared with the image."""
    return 0, corner[1]


def overlaid(corner: Size) -> Size:
    """On the image's own positions."""
    return 0, 0


PLACES: dict[str, Place] = {"d": diagonal, "h": below, "w": beside, "o": overlaid}
"""By the letters the release names them with."""


def patch_grid(latents: torch.Tensor) -> Size:
    """Rows and columns of patches of latents (B, C, h, w).

    Raises:
        ValueError: a side is odd.
    """
    height, width = latents.shape[-2:]
    if height % PATCH or width % PATCH:
        raise ValueError(f"Latents of {height} x {width} cannot be cut into patches: both sides must be even.")
    return height // PATCH, width // PATCH


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) to tokens (B, N, D); in a token the channel is slowest, then the row, then the column."""
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)


def unpack(tokens: torch.Tensor, grid: Size) -> torch.Tensor:
    """Tokens (B, N, D) to latents (B, C, h, w); `grid` is (r, c)."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=grid[0], p=PATCH, q=PATCH)


def grid_ids(grid: Size, start: Size = (0, 0), device: torch.device | str | None = None) -> torch.Tensor:
    """(N, 3) float32 positions of a grid of patches whose first one stands at `start`."""
    rows = torch.arange(start[0], start[0] + grid[0], device=device, dtype=torch.float32)
    columns = torch.arange(start[1], start[1] + grid[1], device=device, dtype=torch.float32)
    axes = torch.meshgrid(torch.zeros(1, device=device), rows, columns, indexing="ij")
    return rearrange(torch.stack(axes, dim=-1), "1 h w a -> (h w) a")


def reference_ids(
    image: Size, references: Sequence[Size], place: Place = diagonal, device: torch.device | str | None = None
) -> list[torch.Tensor]:
    """Positions of the references, any number and any sizes.

    Args:
        image: (r, c) of the image.
        references: (r, c) of each reference.
        place: where a reference starts.

    Returns:
        per reference (n, 3) float32.
    """
    corners = accumulate(references, lambda corner, size: (corner[0] + size[0], corner[1] + size[1]), initial=image)
    return [grid_ids(size, place(corner), device) for size, corner in zip(references, corners, strict=False)]


@dataclass(frozen=True, kw_only=True)
class ReferenceTokens:
    """All references of a pass, one after the other.

    Attributes:
        tokens: (B, n, D), or (1, n, D) for all images.
        ids: (n, 3).
        counts: tokens of each reference; they add up to n.
    """

    tokens: torch.Tensor
    ids: torch.Tensor
    counts: tuple[int, ...]


def reference_tokens(latents: Sequence[torch.Tensor], image: Size, place: Place = diagonal) -> ReferenceTokens | None:
    """The tokens and positions of references for an image of (r, c) patches; None without references.

    Args:
        latents: per reference (B or 1, C, h, w), clean, of any even size.
    """
    if not latents:
        return None
    grids = [patch_grid(one) for one in latents]
    ids = reference_ids(image, grids, place, latents[0].device)
    return ReferenceTokens(
        tokens=torch.cat([pack(one) for one in latents], dim=1),
        ids=torch.cat(ids),
        counts=tuple(rows * columns for rows, columns in grids),
    )


def velocity(
    transformer,
    tokens: torch.Tensor,
    ids: torch.Tensor,
    times: torch.Tensor,
    text: torch.Tensor,
    conditions: Mapping[str, Any],
    references: ReferenceTokens | None = None,
) -> torch.Tensor:
    """One pass of diffusers' FluxTransformer2DModel: noise minus image, (B, N, D).

    References are tokens like those of the image, in every block; what comes out at their places is dropped.

    Args:
        tokens: (B, N, D) of x_t.
        ids: (N, 3).
        times: (B,) in [0, 1]; 1 is noise.
        text: (B, T, c).
        conditions: by the transformer's names: `pooled_projections` (B, c), `guidance` (B,) where it is distilled.
    """
    count = tokens.shape[1]
    if references is not None:
        tokens = torch.cat([tokens, references.tokens.to(tokens).expand(tokens.shape[0], -1, -1)], dim=1)
        ids = torch.cat([ids, references.ids.to(ids)])
    out = transformer(
        hidden_states=tokens,
        timestep=times,
        encoder_hidden_states=text,
        img_ids=ids,
        txt_ids=torch.zeros(text.shape[1], 3, device=ids.device, dtype=ids.dtype),
        return_dict=False,
        **conditions,
    )[0]
    return out[:, :count]

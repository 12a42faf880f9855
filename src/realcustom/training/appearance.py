"""What a miniature's reference encoders learn before they meet the U-Net: how the subject of a reference looks.

The published backbones bring this knowledge along. Small networks without it would have to get it through the noise of
the diffusion loss, where a reference decides little: at most noise levels the noisy picture shows its colours itself.

Shapes: B samples, H, W reference height and width, n tokens of one view, d token width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from realcustom.encoders.image import ReferenceFeatures, to_views
from realcustom.models.adapter import RealCustomAdapter

from .adapter import squash
from .config import Batch, Modules
from .stickers import Stickers

LEVELS = 4  # of each colour channel in a histogram
SHARES = LEVELS**3
CELLS = 2  # colours a side that a token tells of its patch
VIEW = 8  # cells a side of the subject seen upright and filling the picture
LOOKS = 4  # queries that read the subject's colours
# Most shares of a histogram are 0, and a mean colour is nearly right soon, so that their mean errors are small.
WEIGHTS = {"patch": 1.0, "colour": 30.0, "shares": 10.0, "view": 3.0}


def appearance_of(image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """How a subject looks, which neither place nor size changes much.

    Args:
        image: uint8 (H, W, 3).
        mask: bool (H, W) of the subject; where it is nowhere, the whole picture is taken.

    Returns:
        colour: float32 (3,), mean in [0, 1]. shares: float32 (64,), square roots of the shares of 64 colours.
        view: float32 (4, VIEW, VIEW), what the box around the subject shows, premultiplied RGB and opacity in [0, 1].
    """
    mask = mask if mask.any() else np.ones_like(mask)
    pixels = image[mask]
    levels = pixels.astype(np.int64) * LEVELS // 256
    counts = np.bincount((levels * (LEVELS**2, LEVELS, 1)).sum(axis=1), minlength=SHARES)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    layers = [*rearrange(np.where(mask[..., None], image, 0), "h w c -> c h w"), mask.astype(np.uint8) * 255]
    small = [Image.fromarray(layer[box]).resize((VIEW, VIEW), Image.Resampling.BOX) for layer in layers]
    return {
        "colour": (pixels.mean(axis=0) / 255).astype(np.float32),
        "shares": np.sqrt(counts / len(pixels)).astype(np.float32),
        "view": np.stack(small).astype(np.float32) / 255,
    }


class Appearances(Stickers):
    """Endless references with how their subject looks in another picture."""

    size = None

    def batch(self, indices: np.ndarray) -> Mapping[str, Tensor]:
        """references uint8 (B, 3, H, W), and colour (B, 3), shares (B, 64) and view (B, 4, VIEW, VIEW), float32."""
        references, appearances = zip(*(self._sample(int(index)) for index in indices), strict=True)
        pixels = rearrange(np.stack(references), "b h w c -> b c h w").copy()
        told = {name: np.stack([appearance[name] for appearance in appearances]) for name in appearances[0]}
        return {"references": torch.from_numpy(pixels), **{name: torch.from_numpy(each) for name, each in told.items()}}

    def _sample(self, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        record = self.world.record(index)
        subject = index % len(record.references)
        return record.references[subject], appearance_of(record.image, record.masks[subject])


class Looks(nn.Module):
    """Learned queries that look at the tokens, as the U-Net's do: (B, n, d) -> (B, queries, out_dim)."""

    def __init__(self, dim: int, queries: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(queries, dim) * dim**-0.5)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens)
        queries = self.queries.to(tokens.dtype).expand(len(tokens), -1, -1)
        return self.to_out(F.scaled_dot_product_attention(queries, self.to_k(tokens), self.to_v(tokens)))


def appearance_heads(adapter: RealCustomAdapter) -> nn.ModuleDict:
    """Readings of the visual tokens: `patch` of every token, `colours` of the subject and its `view`."""
    width = adapter.to_k[0].in_features
    return nn.ModuleDict(
        {
            "patch": nn.Linear(width, 3 * CELLS**2),
            "colours": nn.Sequential(Looks(width, LOOKS, width), nn.Flatten(), nn.Linear(LOOKS * width, 3 + SHARES)),
            "view": Looks(width, VIEW**2, 4),
        }
    )


def appearance_loss(modules: Modules, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Tokens must tell, each, the colours of its patch, and together how the subject looks in another picture.

    Args:
        modules: adapter, reference_encoder and `heads` (see `appearance_heads`), all trained.
        batch: of `Appearances`.
        generator: unused; nothing here is random.

    Returns:
        The sum of the mean squared errors weighted by `WEIGHTS`, and each by its name.
    """
    encoder, heads = modules["reference_encoder"], modules["heads"]
    pixels = squash(batch["references"], encoder.pixel_size)
    tokens = modules["adapter"].tokens(global_features(encoder, pixels))
    side = CELLS * round(encoder.tokens**0.5)
    patches = rearrange(F.adaptive_avg_pool2d(pixels, side), "b c (h i) (w j) -> b (h w) (c i j)", i=CELLS, j=CELLS)
    told, colours = heads["patch"](tokens), heads["colours"](tokens)
    pairs = {
        "patch": (told, patches.repeat(1, told.shape[1] // patches.shape[1], 1)),
        "colour": (colours[:, :3], batch["colour"]),
        "shares": (colours[:, 3:], batch["shares"]),
        "view": (heads["view"](tokens), rearrange(batch["view"], "b c h w -> b (h w) c")),
    }
    errors = {name: F.mse_loss(found.float(), true) for name, (found, true) in pairs.items()}
    loss = sum(WEIGHTS[name] * error for name, error in errors.items())
    return loss, {name: error.detach() for name, error in errors.items()}


def global_features(encoder, pixels: Tensor) -> ReferenceFeatures:
    """Features of references (R, 3, 2s, 2s) with the global view in the place of the four local ones.

    Those show the same picture, a pixel beside, through the same weights, and would be four fifths of the work.
    """
    *shallow, deep = encoder.levels(to_views(pixels.float())[0])
    return ReferenceFeatures(deep, deep.repeat(1, 4, 1), tuple(shallow))

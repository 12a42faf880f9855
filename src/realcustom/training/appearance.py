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
from torch import Tensor, nn

from realcustom.models.adapter import RealCustomAdapter

from .adapter import squash
from .config import Batch, Modules
from .stickers import Stickers

LEVELS = 4  # of each colour channel in a histogram
APPEARANCE = 3 + LEVELS**3
CELLS = 2  # colours a side that a token tells of its patch
SUBJECT_WEIGHT = 10.0  # most shares of a histogram are 0, so that its mean error is small


def appearance_of(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels (N, 3) of a subject -> float32 (67,): mean colour in [0, 1], and square roots of the shares of 64
    colours, which neither pose nor size changes much."""
    levels = pixels.astype(np.int64) * LEVELS // 256
    counts = np.bincount((levels * (LEVELS**2, LEVELS, 1)).sum(axis=1), minlength=LEVELS**3)
    return np.concatenate([pixels.mean(axis=0) / 255, np.sqrt(counts / max(1, len(pixels)))]).astype(np.float32)


class Appearances(Stickers):
    """Endless references with how their subject looks in another picture."""

    size = None

    def batch(self, indices: np.ndarray) -> Mapping[str, Tensor]:
        """references uint8 (B, 3, H, W); appearance float32 (B, 67)."""
        references, appearances = zip(*(self._sample(int(index)) for index in indices), strict=True)
        pixels = rearrange(np.stack(references), "b h w c -> b c h w").copy()
        return {"references": torch.from_numpy(pixels), "appearance": torch.from_numpy(np.stack(appearances))}

    def _sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        record = self.world.record(index)
        subject = index % len(record.references)
        mask = record.masks[subject]
        pixels = record.image[mask if mask.any() else ...].reshape(-1, 3)
        return record.references[subject], appearance_of(pixels)


def appearance_heads(adapter: RealCustomAdapter) -> nn.ModuleDict:
    """Linear readings of the visual tokens: `patch` of every token, `subject` of their mean."""
    width = adapter.to_k[0].in_features
    return nn.ModuleDict(
        {
            "patch": nn.Linear(width, 3 * CELLS**2),
            "subject": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, APPEARANCE)),
        }
    )


def appearance_loss(modules: Modules, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Tokens must tell, each, the colours of its patch, and together how the subject looks in another picture.

    Args:
        modules: adapter, reference_encoder and `heads` (see `appearance_heads`), all trained.
        batch: of `Appearances`.
        generator: unused; nothing here is random.

    Returns:
        The weighted sum of both mean squared errors, and each by its name.
    """
    encoder = modules["reference_encoder"]
    pixels = squash(batch["references"], encoder.pixel_size)
    tokens = modules["adapter"].tokens(encoder(pixels))
    side = CELLS * round(encoder.tokens**0.5)
    patches = rearrange(F.adaptive_avg_pool2d(pixels, side), "b c (h i) (w j) -> b (h w) (c i j)", i=CELLS, j=CELLS)
    told = modules["heads"]["patch"](tokens)
    patch = F.mse_loss(told.float(), patches.repeat(1, told.shape[1] // patches.shape[1], 1))
    subject = F.mse_loss(modules["heads"]["subject"](tokens.mean(dim=1)).float(), batch["appearance"])
    return patch + SUBJECT_WEIGHT * subject, {"patch": patch.detach(), "subject": subject.detach()}

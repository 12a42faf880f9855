"""Sizes that pictures of a batch are stretched to, so that they fit into one tensor (UNO's training)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

BUCKETS = (
    (256, 768), (320, 768), (320, 704), (384, 640), (448, 576), (512, 512),
    (576, 448), (640, 384), (704, 320), (768, 320), (768, 256),
)  # fmt: skip
"""Height and width at resolution 512; all have about its area."""


def bucket_for(sizes: Sequence[tuple[int, int]], resolution: int) -> tuple[int, int]:
    """Height and width for pictures of one batch: the bucket nearest to their mean height / width, the first of two.

    Args:
        sizes: height and width of each picture.
        resolution: side in pixels of the square bucket, from 32 on; the others scale with it and are cut to multiples
            of 16.

    Raises:
        ValueError: the resolution is below 32.
    """
    if resolution < 32:
        raise ValueError(f"The resolution is {resolution}; buckets of whole tokens start at 32.")
    mean = sum(height / width for height, width in sizes) / len(sizes)
    buckets = [tuple(side * resolution // 512 // 16 * 16 for side in bucket) for bucket in BUCKETS]
    return min(buckets, key=lambda bucket: abs(bucket[0] / bucket[1] - mean))


def stretched(images: Sequence[torch.Tensor], resolution: int) -> torch.Tensor:
    """Pictures (3, h, w) in [-1, 1] to one batch (B, 3, H, W) of their bucket, bilinear with antialiasing."""
    size = bucket_for([tuple(image.shape[-2:]) for image in images], resolution)
    return torch.cat([F.interpolate(image[None], size, mode="bilinear", antialias=True) for image in images])

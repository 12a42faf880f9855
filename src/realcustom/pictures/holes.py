"""Where a picture is drawn anew: outlines as masks, and the new laid into the old. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from realcustom.checks import Box, Point
from realcustom.pictures.masks import open_mask

EDGE = 0.5  # of a mask's values, from which a pixel is drawn anew


def hole_mask(hole: Box | Sequence[Point] | Image.Image, size: tuple[int, int]) -> np.ndarray:
    """A hole as bool (H, W), True where the picture is drawn anew.

    Args:
        hole: box or corners in fractions of the picture, or a mask of any size.
        size: width and height of the picture.

    Raises:
        ValueError: not a pixel of it is drawn anew.
    """
    if isinstance(hole, Image.Image):
        mask = Image.fromarray(open_mask(hole)).resize(size, Image.Resampling.BILINEAR)
        inside = np.asarray(mask) >= EDGE
    else:
        inside = _outlined(hole, size)
    if not inside.any():
        raise ValueError("The hole is smaller than a pixel of the picture: make it larger.")
    return inside


def _outlined(hole: Box | Sequence[Point], size: tuple[int, int]) -> np.ndarray:
    width, height = size
    if isinstance(hole[0], Sequence):
        canvas = Image.new("1", size)
        # A corner is between pixels; Pillow's coordinates are pixels' middles.
        ImageDraw.Draw(canvas).polygon([(x * width - 0.5, y * height - 0.5) for x, y in hole], fill=1)
        return np.asarray(canvas)
    left, top, right, bottom = hole
    inside = np.zeros((height, width), dtype=bool)
    inside[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    return inside


def laid_into(old: Image.Image, new: Image.Image, inside: np.ndarray, feather: int = 0) -> Image.Image:
    """The old picture with the new one in its hole; outside every pixel is the old one's.

    Args:
        old: RGB.
        new: RGB, stretched to the old one's size.
        inside: bool (H, W), the hole.
        feather: pixels from the hole's edge inwards over which the old passes into the new.
    """
    share = inside.astype(np.float32)
    if feather:
        # A pixel at the edge of the hole is one pixel away from the old.
        share = np.clip(distance_transform_edt(inside) / (feather + 1), 0.0, 1.0).astype(np.float32)
    if new.size != old.size:
        new = new.resize(old.size, Image.Resampling.LANCZOS)
    before, after = np.asarray(old, dtype=np.float32), np.asarray(new, dtype=np.float32)
    mixed = np.rint(before + share[..., None] * (after - before)).astype(np.uint8)
    return Image.fromarray(mixed)


def fitting_size(picture: tuple[int, int], area: int, grid: int) -> tuple[int, int]:
    """Width and height at which a picture is drawn: its own shape, at most `area` pixels, multiples of `grid`.

    Smaller pictures keep their size; a side never becomes shorter than the grid.
    """
    scale = min(1.0, (area / (picture[0] * picture[1])) ** 0.5)
    return tuple(max(grid, round(side * scale / grid) * grid) for side in picture)

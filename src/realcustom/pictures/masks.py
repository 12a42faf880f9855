"""Reading masks: where something may be, from pictures and arrays of any kind. Needs Pillow and numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from PIL import Image, ImageChops

from realcustom.pictures.opening import MAX_PIXELS, ImageSource, open_as_stored

FAINTEST = 0.05  # a mask that is nowhere lighter shows nothing: labels 1 and 2 of 255, or noise
NEARLY_ONE = 1.001  # floats that rounding took above 1


def open_mask(source: ImageSource) -> np.ndarray:
    """A mask as float32 (H, W) in [0, 1], 1 where something may be.

    One rule for every source: a pixel counts as much as its lightest channel, times its alpha, so that paint on a
    transparent ground is the painted part, whatever lies hidden below. The largest value says what full is: 1, 255 or
    65535, so that a mask of zeros and ones acts as one of zeros and 255. Colour profiles do not matter.

    source: a path, the bytes of a file, a PIL image, or an array (H, W), (1, H, W), (H, W, 1), (H, W, 3) or (H, W, 4)
        of bools, integers, or floats in [0, 1] (or whole ones up to 65535).

    Raises:
        ValueError: one sentence; it cannot be opened, holds other values, or is (nearly) black everywhere.
    """
    if isinstance(source, np.ndarray):
        name, levels, alpha = "The given mask", *_split(source)
    else:
        image, name = open_as_stored(source)
        levels, alpha = _channels(image)
    mask = _scaled(levels, name)
    if alpha is not None:
        mask = mask * _scaled(alpha, name)
    if mask.max() < FAINTEST:
        raise ValueError(
            f"{name} is black{'' if not mask.any() else ', or nearly so,'} everywhere, so it leaves no place: "
            "a mask is white where the subject may be."
        )
    return mask


def mask_picture(mask: np.ndarray) -> Image.Image:
    """A mask (H, W) in [0, 1] as an RGB picture, which `open_mask` reads as the same mask to 8 bits."""
    return Image.fromarray(np.rint(mask * 255).astype(np.uint8)).convert("RGB")


def _channels(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Raw values (H, W) of a picture and, where it has transparency, its alpha."""
    if image.has_transparency_data:
        *colours, alpha = image.convert("RGBA").split()
        return _lightest(colours), np.asarray(alpha)
    if image.mode in ("L", "1") or image.mode.startswith("I") or image.mode == "F":
        return np.asarray(image), None
    return _lightest(image.convert("RGB").split()), None


def _lightest(channels: Sequence[Image.Image]) -> np.ndarray:
    """The lightest of 8-bit channels; Pillow is many times faster at it than numpy along a short axis."""
    return np.asarray(reduce(ImageChops.lighter, channels))


def _split(array: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    if array.ndim == 3 and array.shape[2] in (1, 3, 4):
        return array[..., :3].max(axis=2), array[..., 3] if array.shape[2] == 4 else None
    if array.ndim == 3 and array.shape[0] == 1:
        return array[0], None
    if array.ndim != 2:
        raise ValueError(
            f"A mask array must be (H, W), (1, H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {array.shape}."
        )
    return array, None


def _scaled(values: np.ndarray, name: str) -> np.ndarray:
    """Values to float32 in [0, 1] by the largest one."""
    if values.size == 0 or values.size > MAX_PIXELS:
        raise ValueError(f"{name} is {values.shape[1]} x {values.shape[0]} pixels; it needs 1 to {MAX_PIXELS}.")
    if values.dtype.kind not in "buif":
        raise ValueError(f"{name} must hold bools, integers or floats, not {values.dtype}.")
    low, high = float(values.min()), float(values.max())
    whole = values.dtype.kind != "f" or (values == np.rint(values)).all()
    if not low >= 0.0 or not high <= 65535.0 or (high > NEARLY_ONE and not whole):
        raise ValueError(f"{name} holds values from {low:g} to {high:g}: they must lie in [0, 1], or be 0 to 255.")
    full = next(top for top in (1.0, 255.0, 65535.0) if high <= max(top, NEARLY_ONE))
    return np.clip(values.astype(np.float32) / full, 0.0, 1.0)

"""Guidance masks as pictures: grey at full image size, or laid over the image they shaped. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from PIL import Image

TINT = (255, 64, 129)  # seen on most pictures, and nothing natural has it


def mask_image(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A mask (h, w) in [0, 1] as 8-bit grey, bilinearly resized to `size` = (width, height)."""
    grey = np.rint(np.clip(np.asarray(mask, dtype=np.float32), 0.0, 1.0) * 255).astype(np.uint8)
    return Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR)


def overlay(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The image, tinted where the mask (h, w) is high and dimmed to half where it is 0."""
    weight = np.asarray(mask_image(mask, image.size), dtype=np.float32)[..., None] / 255
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    inside = 0.6 * pixels + 0.4 * np.array(TINT, dtype=np.float32)
    return Image.fromarray(np.rint(weight * inside + (1 - weight) * 0.5 * pixels).astype(np.uint8))


def slugs(words: Iterable[str]) -> dict[str, str]:
    """Words and phrases as parts of file names, no two the same: "dog with the pink hat" -> dog-with-the-pink-hat."""
    names: dict[str, str] = {}
    for word in words:
        base = re.sub(r"[^\w-]+", "-", word.strip().lower()).strip("-")[:60] or "subject"
        name, number = base, 2
        while name in names.values():
            name, number = f"{base}-{number}", number + 1
        names[word] = name
    return names

"""Outlines: where figures end, as a white line on black; what an outline ControlNet is told."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

WIDTH = 3  # pixels of a line, in a picture of 128


def outline(covers: np.ndarray) -> np.ndarray:
    """The edges of figures, uint8 (H, W): 255 on a line that runs within each figure along its border.

    covers: bool (F, H, W), where each figure is seen; for none the result is black.
    """
    lines = np.zeros(covers.shape[1:], np.uint8)
    for cover in covers:
        figure = Image.fromarray(cover.astype(np.uint8) * 255)
        inner = np.asarray(figure.filter(ImageFilter.MinFilter(WIDTH)))
        lines |= np.where(inner == 0, np.asarray(figure), 0).astype(np.uint8)
    return lines

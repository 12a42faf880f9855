"""Where a face is: OpenCV's own cascade, which needs no download."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from realcustom.checks import Box, finite

MARGIN = 0.25  # of the found side, so that the crop holds hair and chin
LARGEST = 800  # pixels a side that are searched


def find_face(image: Image.Image) -> Box | None:
    """The largest face in an RGB image as (left, top, right, bottom) in fractions of its size, or None.

    Raises:
        ValueError: OpenCV is not installed.
    """
    small = image.copy()
    small.thumbnail((LARGEST, LARGEST))
    grey = np.asarray(small.convert("L"))
    least = max(16, min(grey.shape) // 12)
    found = _cascade().detectMultiScale(grey, scaleFactor=1.1, minNeighbors=4, minSize=(least, least))
    if len(found) == 0:
        return None
    left, top, width, height = max(found, key=lambda box: box[2] * box[3])
    return (
        max(0.0, float(left - MARGIN * width) / small.width),
        max(0.0, float(top - MARGIN * height) / small.height),
        min(1.0, float(left + (1 + MARGIN) * width) / small.width),
        min(1.0, float(top + (1 + MARGIN) * height) / small.height),
    )


def crop(image: Image.Image, box: Box) -> Image.Image:
    """The part of an image inside a box of fractions, at least 8 x 8 pixels.

    Raises:
        ValueError: the box is empty or smaller than that.
    """
    left, top, right, bottom = (finite("A side of the face's box", side, 0.0, 1.0) for side in box)
    pixels = (
        round(left * image.width),
        round(top * image.height),
        round(right * image.width),
        round(bottom * image.height),
    )
    if pixels[2] - pixels[0] < 8 or pixels[3] - pixels[1] < 8:
        raise ValueError("The box around the face is too small: it needs at least 8 x 8 pixels.")
    return image.crop(pixels)


@lru_cache(maxsize=1)
def _cascade():
    try:
        import cv2
    except ImportError as error:
        raise ValueError("Finding faces needs OpenCV: install with the extra [serve], or draw the face.") from error
    # OpenCV 5 has left its cascades out.
    if not hasattr(cv2, "CascadeClassifier"):
        raise ValueError("Finding faces needs OpenCV 4: install with the extra [serve], or draw the face.")
    cascade = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_frontalface_default.xml")
    # Fewer threads than cores: the model needs them.
    cv2.setNumThreads(1)
    return cascade

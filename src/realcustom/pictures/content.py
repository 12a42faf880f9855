"""The one name of what a picture shows: equal for equal pixels, whatever file they came from. Needs no torch."""

from __future__ import annotations

import hashlib

from PIL import Image


def pixels_sha256(image: Image.Image) -> str:
    """SHA-256 over "width x height" and the RGB bytes of an RGB image."""
    return hashlib.sha256(f"{image.width} x {image.height} ".encode() + image.tobytes()).hexdigest()

"""Hat, sunglasses, scarf, crown and bow tie, drawn by code and fitted to a cut-out's head."""

import functools
import random

import numpy as np
from PIL import Image, ImageDraw

from realcustom.data.cutouts import Cutout

SIDE = 96
_INK = (30, 30, 36)
_SHADES = (
    (206, 40, 48), (36, 90, 200), (38, 150, 80), (120, 60, 170), (240, 120, 40), (240, 90, 160), (24, 160, 170),
)  # fmt: skip


def _dark(colour: tuple[int, int, int], by: float = 0.65) -> tuple[int, ...]:
    return tuple(int(c * by) for c in colour)


def _hat(draw: ImageDraw.ImageDraw, n: int, colour: tuple[int, int, int]) -> None:
    draw.rounded_rectangle((0.24 * n, 0.12 * n, 0.76 * n, 0.86 * n), 0.06 * n, fill=colour, outline=_INK, width=n // 40)
    draw.rectangle((0.25 * n, 0.62 * n, 0.75 * n, 0.78 * n), fill=(250, 226, 120))
    draw.ellipse((0.02 * n, 0.74 * n, 0.98 * n, 0.97 * n), fill=_dark(colour, 0.8), outline=_INK, width=n // 40)


def _crown(draw: ImageDraw.ImageDraw, n: int, colour: tuple[int, int, int]) -> None:
    points = [(0.06, 0.95), (0.02, 0.3), (0.27, 0.6), (0.5, 0.1), (0.73, 0.6), (0.98, 0.3), (0.94, 0.95)]
    draw.polygon([(x * n, y * n) for x, y in points], fill=(255, 208, 40), outline=(150, 100, 10), width=n // 28)
    for x, y in ((0.5, 0.13), (0.06, 0.32), (0.94, 0.32)):
        draw.ellipse(((x - 0.06) * n, (y - 0.06) * n, (x + 0.06) * n, (y + 0.06) * n), fill=colour)
    for x in (0.25, 0.5, 0.75):
        draw.ellipse(((x - 0.07) * n, 0.7 * n, (x + 0.07) * n, 0.86 * n), fill=colour)


def _sunglasses(draw: ImageDraw.ImageDraw, n: int, colour: tuple[int, int, int]) -> None:
    draw.rectangle((0.0, 0.36 * n, n, 0.43 * n), fill=_INK)
    for left in (0.04, 0.54):
        box = (left * n, 0.34 * n, (left + 0.42) * n, 0.7 * n)
        draw.rounded_rectangle(box, 0.13 * n, fill=(16, 16, 22), outline=_dark(colour, 0.9), width=n // 24)
        draw.line([((left + 0.1) * n, 0.56 * n), ((left + 0.22) * n, 0.42 * n)], fill=(190, 210, 230), width=n // 24)


def _scarf(draw: ImageDraw.ImageDraw, n: int, colour: tuple[int, int, int]) -> None:
    tail = [(0.58, 0.45), (0.8, 0.45), (0.9, 0.98), (0.66, 0.98)]
    draw.polygon([(x * n, y * n) for x, y in tail], fill=_dark(colour, 0.8))
    band = (0.02 * n, 0.22 * n, 0.98 * n, 0.54 * n)
    draw.rounded_rectangle(band, 0.15 * n, fill=colour, outline=_dark(colour), width=n // 40)
    for x in (0.18, 0.38, 0.58, 0.78):
        draw.line([(x * n, 0.24 * n), ((x + 0.05) * n, 0.52 * n)], fill=(250, 246, 236), width=n // 16)
    draw.line([(0.66 * n, 0.78 * n), (0.84 * n, 0.78 * n)], fill=(250, 246, 236), width=n // 16)


def _bow_tie(draw: ImageDraw.ImageDraw, n: int, colour: tuple[int, int, int]) -> None:
    for points in ([(0.03, 0.22), (0.5, 0.5), (0.03, 0.78)], [(0.97, 0.22), (0.5, 0.5), (0.97, 0.78)]):
        draw.polygon([(x * n, y * n) for x, y in points], fill=colour, outline=_dark(colour), width=n // 30)
    draw.ellipse((0.39 * n, 0.37 * n, 0.61 * n, 0.63 * n), fill=_dark(colour, 0.75))


_DRAWN = {"hat": _hat, "crown": _crown, "sunglasses": _sunglasses, "scarf": _scarf, "bow tie": _bow_tie}
# Box of each drawing relative to the head: left, top, right, bottom; x in head widths from its middle, y in head
# heights from its top.
_FIT = {
    "hat": (-0.6, -0.85, 0.6, 0.22),
    "crown": (-0.5, -0.6, 0.5, 0.2),
    "sunglasses": (-0.5, 0.02, 0.5, 0.84),
    "scarf": (-0.55, 0.66, 0.55, 1.55),
    "bow tie": (-0.4, 0.72, 0.4, 1.32),
}


@functools.lru_cache(maxsize=64)
def _sprite(name: str, shade: int) -> Image.Image:
    large = Image.new("RGBA", (SIDE * 3, SIDE * 3), (*_SHADES[shade], 0))
    _DRAWN[name](ImageDraw.Draw(large), SIDE * 3, _SHADES[shade])
    return large.convert("RGBa").resize((SIDE, SIDE), Image.Resampling.BOX).convert("RGBA")


def accessory(name: str, cutout: Cutout, rng: random.Random) -> tuple[Image.Image, np.ndarray]:
    """The accessory's RGBA drawing, in a random shade, and its (3, 3) placement in cut-out pixels."""
    sprite = _sprite(name, rng.randrange(len(_SHADES)))
    x, top, width, height = cutout.head
    # On a small head an accessory of true proportions would be a speck at 128 px.
    grow = max(1.0, 0.45 * cutout.area**0.5 / width)
    width, height = width * grow, height * grow**0.5
    left, above, right, below = _FIT[name]
    scale_x, scale_y = (right - left) * width / SIDE, (below - above) * height / SIDE
    placed = np.array([[scale_x, 0, x + left * width], [0, scale_y, top + above * height], [0, 0, 1.0]])
    return sprite, placed

"""Small drawing helpers shared by scenes and accessories: gradients, noise, ridges, blobs.

Plates are DRAWN x DRAWN pixels, about twice their final size, which is the anti-aliasing. Positions are fractions of
the plate, x to the right and y down.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

DRAWN = 320

Colour = Sequence[float]


def gradient(*stops: tuple[float, Colour]) -> Image.Image:
    """Vertical gradient through (y, rgb) stops."""
    y = np.linspace(0, 1, DRAWN)
    places = [stop[0] for stop in stops]
    column = np.stack([np.interp(y, places, [stop[1][c] for stop in stops]) for c in range(3)], axis=-1)
    column = np.clip(column, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(column[:, None], (DRAWN, DRAWN, 3))))


def noise(rng: np.random.Generator, cells: tuple[int, int], octaves: int = 3) -> np.ndarray:
    """Smooth noise (DRAWN, DRAWN) in 0..1; cells = (across, down) features of the coarsest octave."""
    total = np.zeros((DRAWN, DRAWN), dtype=np.float32)
    for octave in range(octaves):
        grid = rng.random((max(2, cells[1] * 2**octave), max(2, cells[0] * 2**octave)), dtype=np.float32)
        total += np.asarray(Image.fromarray(grid).resize((DRAWN, DRAWN), Image.Resampling.BICUBIC)) * 0.5**octave
    return np.clip(total / (2 - 0.5 ** (octaves - 1)), 0, 1)


def shade(picture: Image.Image, field: np.ndarray, strength: float, below: float = 0.0) -> Image.Image:
    """Lighten and darken by a 0..1 field, below a fraction of the height only."""
    values = np.asarray(picture).astype(np.float32)
    start = int(below * DRAWN)
    values[start:] *= 1 + strength * (2 * field[start:, :, None] - 1)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def blend(picture: Image.Image, colour: Colour, amount: np.ndarray) -> Image.Image:
    """Mix a colour in by a 0..1 field."""
    values = np.asarray(picture).astype(np.float32)
    values += (np.asarray(colour, dtype=np.float32) - values) * amount[..., None]
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def vary(rng: np.random.Generator, colour: Colour, spread: float = 14) -> tuple[int, int, int]:
    """The colour with a random change of light and tint."""
    values = np.asarray(colour) + rng.uniform(-spread, spread) + rng.uniform(-spread / 2, spread / 2, 3)
    r, g, b = np.clip(values, 0, 255).astype(int).tolist()
    return r, g, b


def ridge(rng: np.random.Generator, level: float, height: float, waves: float) -> list[tuple[float, float]]:
    """A rolling line across the plate around y = level, closed along the bottom edge."""
    x = np.linspace(0, 1, 65)
    y = sum(np.sin(2 * np.pi * (waves * k * x + rng.random())) / k**1.3 for k in (1, 2, 3))
    return _closed(x, level - height * y / 2)


def peaks(rng: np.random.Generator, level: float, height: float, count: int) -> list[tuple[float, float]]:
    """A jagged mountain line, closed along the bottom edge."""
    tops = (np.arange(count) + rng.uniform(0.2, 0.8, count)) / count
    x = np.sort(np.concatenate([tops, (tops[1:] + tops[:-1]) / 2, [-0.05, 1.05]]))
    y = level - height * np.where(np.isin(x, tops), rng.uniform(0.6, 1.0, len(x)), rng.uniform(0.0, 0.3, len(x)))
    fine = np.linspace(-0.05, 1.05, 120)
    return _closed(fine, np.interp(fine, x, y) + rng.normal(0, height * 0.018, len(fine)))


def _closed(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    return [*zip(x.tolist(), y.tolist(), strict=True), (1.05, 1.05), (-0.05, 1.05)]


class Pen:
    """Draws on a plate in fractions of its side."""

    def __init__(self, picture: Image.Image):
        self.picture = picture
        self.draw = ImageDraw.Draw(picture)

    def area(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        self.draw.polygon([(x * DRAWN, y * DRAWN) for x, y in points], fill=tuple(int(c) for c in fill))

    def disc(self, x: float, y: float, radius: float, fill: Colour, flat: float = 1.0) -> None:
        """A disc, or an ellipse `flat` times as high as wide."""
        box = [(x - radius) * DRAWN, (y - radius * flat) * DRAWN, (x + radius) * DRAWN, (y + radius * flat) * DRAWN]
        self.draw.ellipse(box, fill=tuple(int(c) for c in fill))

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        corners = [left * DRAWN, top * DRAWN, right * DRAWN, bottom * DRAWN]
        self.draw.rectangle(corners, fill=tuple(int(c) for c in fill))

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: float) -> None:
        path = [(x * DRAWN, y * DRAWN) for x, y in points]
        self.draw.line(path, fill=tuple(int(c) for c in fill), width=max(1, round(width * DRAWN)), joint="curve")


def glow(picture: Image.Image, x: float, y: float, radius: float, colour: Colour) -> Image.Image:
    """A soft light around a point."""
    yy, xx = np.mgrid[0:DRAWN, 0:DRAWN].astype(np.float32) / DRAWN
    amount = np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / radius**2)
    return blend(picture, colour, np.clip(amount, 0, 1))

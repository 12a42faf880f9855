"""Identities: one cut-out made into practically endless individuals by colour, pattern and proportions.

An identity is named by its id, "dog/noto:red:stripes:4711": cut-out, main colour ("natural" keeps the drawing's
own), pattern, and a number that seeds everything else. Train and held-out are separated by cut-out, colour and
pattern together, so no held-out individual has a training twin that differs by a shade only.
"""

import colorsys
import math
import random
import zlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from realcustom.data.colour import lab_to_rgb, rgb_to_lab
from realcustom.data.cutouts import Cutout
from realcustom.data.vocabulary import COLOURS

PATTERNS = ("plain", "solid", "stripes", "dots", "checks", "two-tone", "patches")
NUMBERS = 100_000
HELD_OUT_PERCENT = 12


@dataclass(frozen=True, kw_only=True)
class Identity:
    """cutout: name of the drawing; colour: a key of COLOURS, "#rrggbb" for one without a name, or "natural";
    pattern: one of PATTERNS; number: seed."""

    word: str
    cutout: str
    colour: str
    pattern: str
    number: int

    @property
    def id(self) -> str:
        return f"{self.cutout}:{self.colour}:{self.pattern}:{self.number}"

    @property
    def split(self) -> str:
        """ "train" or "held-out"; the unchanged drawing always belongs to "train"."""
        if self.colour == "natural" and self.pattern == "plain":
            return "train"
        key = f"{self.cutout}:{self.shade}:{self.pattern}"
        return "held-out" if zlib.crc32(key.encode()) % 100 < HELD_OUT_PERCENT else "train"

    @cached_property
    def shade(self) -> str:
        """The named colour next to the main colour in CIELAB, or "natural"."""
        if not self.colour.startswith("#"):
            return self.colour
        own = rgb_to_lab(colour_rgb(self.colour))
        return min(COLOURS, key=lambda name: float(np.linalg.norm(rgb_to_lab(colour_rgb(name)) - own)))

    @cached_property
    def proportions(self) -> tuple[float, float]:
        """(aspect, taper): width over height factor in 0.82..1.22, and how much wider the bottom is, -0.15..0.15."""
        rng = random.Random(f"shape-{self.cutout}-{self.number}")
        return math.exp(rng.uniform(-0.2, 0.2)), rng.uniform(-0.15, 0.15)

    def painted(self, colour: str) -> "Identity":
        """The same individual with another main colour (for attribute edits: "a red dog")."""
        return replace(self, colour=colour)


def colour_rgb(colour: str) -> np.ndarray:
    """(3,) sRGB in 0..255 of a colour's name or of "#rrggbb"."""
    return np.array(bytearray.fromhex(colour[1:]) if colour.startswith("#") else COLOURS[colour])


def any_colour(rng: random.Random) -> str:
    """A colour without a name, as "#rrggbb": any hue, from gray to vivid and from dark to bright."""
    channels = colorsys.hsv_to_rgb(rng.random(), rng.random() ** 0.6, rng.uniform(0.2, 0.98))
    return "#" + bytes(round(255 * channel) for channel in channels).hex()


def draw_identity(
    rng: random.Random,
    word: str,
    cutouts: tuple[str, ...],
    *,
    split: str,
    colours: tuple[str, ...] = tuple(COLOURS),
    natural: float = 0.3,
    patterned: float = 0.4,
    unnamed: float = 0.0,
) -> Identity:
    """A random identity of the split. natural and patterned are probabilities; patterned < 0 means "solid" only.
    unnamed is the probability that a colour is any at all and not one of `colours`.

    A narrow request that the split cannot meet (one colour, solid, held-out) is widened to other patterns.
    """
    for attempt in range(1000):
        shade = "natural" if rng.random() < natural else rng.choice(colours)
        if unnamed and shade != "natural" and rng.random() < unnamed:
            shade = any_colour(rng)
        if patterned < 0 and attempt < 300:
            pattern = "solid"
        else:
            pattern = rng.choice(PATTERNS[2:]) if rng.random() < patterned else rng.choice(PATTERNS[:2])
        number = rng.randrange(NUMBERS)
        identity = Identity(word=word, cutout=rng.choice(cutouts), colour=shade, pattern=pattern, number=number)
        if identity.split == split:
            return identity
    raise ValueError(f"No {split} identity of {word!r} in {colours}; allow other colours or patterns.")


def paint(cutout: Cutout, identity: Identity) -> np.ndarray:
    """The individual as uint8 (h, w, 4) on its cut-out's grid.

    Every colour cluster moves as a whole (pixel + weights @ shift), which keeps shading and edges.
    """
    rng = random.Random(f"paint-{identity.id}")
    main = _main_clusters(cutout, everything=identity.pattern == "solid")
    pixels = cutout.pixels
    body = np.average(cutout.centres_rgb[main], axis=0, weights=cutout.shares[main])
    if identity.colour != "natural":
        shifts = _shifts(cutout, main, identity.colour, rng)
        pixels = pixels + cutout.weights @ shifts
        body = body + np.average(shifts[main], axis=0, weights=cutout.shares[main])
    if identity.pattern not in ("plain", "solid"):
        amount = cutout.weights[..., main].sum(axis=-1) * pattern_map(identity.pattern, cutout.alpha.shape, rng)
        change = _pattern_colour(identity.colour, cutout, rng) - body
        pixels = pixels + amount[..., None] * change.astype(np.float32)
    out = np.empty((*cutout.alpha.shape, 4), dtype=np.uint8)
    out[..., :3] = np.clip(pixels, 0, 255)
    out[..., 3] = cutout.alpha
    return out


def _main_clusters(cutout: Cutout, everything: bool = False) -> np.ndarray:
    """Indices of the clusters that make up the body's colour: the largest coloured one and those of similar hue.

    everything: all but the small dark and pale ones, so that one colour word is true of the whole drawing.
    """
    lab, shares = cutout.centres_lab, cutout.shares
    dark = lab[:, 0] < 28
    pale = (lab[:, 0] > 88) & (np.hypot(lab[:, 1], lab[:, 2]) < 12)
    # Eyes, outlines and highlights are small, dark or pale: they stay unless they are most of the drawing.
    value = shares * np.where(dark | pale, 0.45, 1.0)
    first = int(value.argmax())
    hue = np.arctan2(lab[:, 2], lab[:, 1])
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    turn = np.abs((hue - hue[first] + math.pi) % (2 * math.pi) - math.pi)
    if chroma[first] > 12:
        similar = (turn < 0.75) & (chroma > 10) & ~pale
    else:
        similar = (chroma < 14) & (np.abs(lab[:, 0] - lab[first, 0]) < 32)
    if everything:
        similar = ~(dark | pale)
    similar[first] = True
    return np.flatnonzero(similar)


def _shifts(cutout: Cutout, main: np.ndarray, colour: str, rng: random.Random) -> np.ndarray:
    """RGB shift (k, 3) of every cluster: the body to the named colour, other areas now and then to further colours."""
    lab, shares = cutout.centres_lab, cutout.shares
    target = rgb_to_lab(colour_rgb(colour)) + np.array([rng.uniform(-5, 5) for _ in range(3)])
    new = lab.copy()
    level = float(np.average(lab[main, 0], weights=shares[main]))
    lightness = target[0] + 0.6 * (lab[main, 0] - level)
    new[main, 0] = np.clip(lightness, 10, 97)
    new[main, 1:] = target[1:]
    rest = [k for k in range(len(lab)) if k not in set(main.tolist())]
    rest = [k for k in rest if 28 <= lab[k, 0] <= 88 and shares[k] > 0.03]
    for k in rest:
        if rng.random() < 0.6:
            other = rgb_to_lab(colour_rgb(any_colour(rng) if colour.startswith("#") else rng.choice(tuple(COLOURS))))
            new[k] = [0.6 * other[0] + 0.4 * lab[k, 0], other[1], other[2]]
    return (lab_to_rgb(new) - lab_to_rgb(lab)).astype(np.float32)


def _pattern_colour(colour: str, cutout: Cutout, rng: random.Random) -> np.ndarray:
    """A second colour that stands out from the first by lightness or hue."""
    first = rgb_to_lab(colour_rgb(colour)) if colour != "natural" else cutout.centres_lab[cutout.shares.argmax()]
    names = sorted(COLOURS)
    rng.shuffle(names)
    if colour.startswith("#"):
        names = [any_colour(rng) for _ in names] + names
    for name in names:
        second = colour_rgb(name)
        if np.linalg.norm(rgb_to_lab(second) - first) > 55:
            return second.astype(np.float32)
    return np.array((240, 240, 238), dtype=np.float32)


def pattern_map(pattern: str, shape: tuple[int, int], rng: random.Random) -> np.ndarray:
    """Where the second colour goes: float32 (h, w) in 0..1, soft edges one pixel wide."""
    h, w = shape
    unit = max(h, w)
    angle, phase = rng.uniform(0, math.pi), rng.uniform(0, 1)
    y, x = np.ogrid[0:h, 0:w]
    y, x = (y / unit).astype(np.float32), (x / unit).astype(np.float32)
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    step = rng.uniform(0.16, 0.26)
    if pattern == "stripes":
        field = np.abs((u / step + phase) % 1 - 0.5) - rng.uniform(0.2, 0.3)
    elif pattern == "dots":
        row = (v / step + phase) % 1 - 0.5
        field = rng.uniform(0.26, 0.33) - np.hypot((u / step) % 1 - 0.5, row)
    elif pattern == "checks":
        field = (np.abs((u / step + phase) % 1 - 0.5) - 0.25) * (np.abs((v / step) % 1 - 0.5) - 0.25) * 4
    elif pattern == "two-tone":
        field = (u - (0.5 * math.cos(angle) * w + 0.5 * math.sin(angle) * h) / unit) / step
    else:
        waves = np.sin(9 * u + 7 * phase) + np.sin(11 * v + 5 * phase) + np.sin(7 * (u + v) + 3 * phase)
        field = 0.25 * (waves - 0.5)
    return np.clip(field * step * unit * 0.7 + 0.5, 0.0, 1.0) * np.float32(0.9)

"""Backgrounds drawn by code. Every function takes a NumPy generator and returns one RGB plate of DRAWN x DRAWN pixels.

Plates are drawn once per (seed, scene, number) and cropped, mirrored and tinted anew for each picture.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from realcustom.data.scenes_outdoor import BEACH_TO_SUNSET
from realcustom.data.scenes_places import PLACES
from realcustom.data.vocabulary import SCENE_PHRASES

SCENES: dict[str, Callable[[np.random.Generator], Image.Image]] = {**BEACH_TO_SUNSET, **PLACES}


class Backgrounds:
    """Cached plates; what it returns depends on the arguments and the seed only."""

    def __init__(self, size: int, seed: int, plates: int = 48, photographs: str | Path | None = None):
        """size: side of the pictures in pixels. plates: how many are drawn per scene.

        photographs: folder with scenes.json ({"scenes": [{"file", "scene", "phrase"}]}), or None.
        """
        self.size, self.seed, self.plates = size, seed, plates
        self.photographs = _photographs(photographs) if photographs is not None else []
        self._cache: dict[tuple[str, int], Image.Image] = {}

    def background(self, scene: str, rng: random.Random) -> Image.Image:
        """A fresh view (size, size) RGB of a drawn scene."""
        number = rng.randrange(self.plates)
        key = (scene, number)
        if key not in self._cache:
            code = sorted(SCENES).index(scene)
            plate = SCENES[scene](np.random.default_rng([self.seed, code, number]))
            self._cache[key] = plate.resize((self.size * 5 // 4,) * 2, Image.Resampling.BOX)
        return self._view(self._cache[key], rng)

    def photograph(self, rng: random.Random) -> tuple[Image.Image, str, str]:
        """A fresh view of a photograph, its scene name and its caption phrase."""
        number = rng.randrange(len(self.photographs))
        path, scene, phrase = self.photographs[number]
        key = ("photograph", number)
        if key not in self._cache:
            picture = Image.open(path).convert("RGB")
            side = min(picture.size)
            box = ((picture.width - side) // 2, (picture.height - side) // 2)
            picture = picture.crop((*box, box[0] + side, box[1] + side))
            self._cache[key] = picture.resize((self.size * 5 // 4,) * 2, Image.Resampling.LANCZOS)
        return self._view(self._cache[key], rng), scene, phrase

    def _view(self, plate: Image.Image, rng: random.Random) -> Image.Image:
        side = rng.randint(self.size, plate.width)
        x, y = rng.randint(0, plate.width - side), rng.randint(0, plate.width - side)
        view = plate.crop((x, y, x + side, y + side))
        if side != self.size:
            view = view.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        light = rng.uniform(0.88, 1.1)
        gains = np.array([256 * light * rng.uniform(0.95, 1.05) for _ in range(3)], dtype=np.uint32)
        return Image.fromarray(np.minimum(np.asarray(view) * gains >> 8, 255).astype(np.uint8))

    def plain(self, rng: random.Random, *, behind_white: bool = False) -> Image.Image:
        """A reference's backdrop: one light colour or a soft gradient; darker where the subject is white."""
        low, high = (80, 190) if behind_white else (150, 255)
        white = rng.random() < 0.4 and not behind_white
        first = [255, 255, 255] if white else [rng.randint(low, high) for _ in range(3)]
        picture = Image.new("RGB", (self.size, self.size), tuple(first))
        if rng.random() < 0.3:
            draw = ImageDraw.Draw(picture)
            drop = rng.uniform(0.1, 0.3)
            for y in range(0, self.size, 2):
                draw.rectangle((0, y, self.size, y + 1), fill=tuple(int(c * (1 - drop * y / self.size)) for c in first))
        return picture


def _photographs(folder: str | Path) -> list[tuple[Path, str, str]]:
    listing = Path(folder) / "scenes.json"
    if not listing.is_file():
        raise ValueError(f"{folder} has no scenes.json naming its photographs.")
    entries = json.loads(listing.read_text())["scenes"]
    return [(Path(folder) / entry["file"], entry["scene"], entry["phrase"]) for entry in entries]


assert set(SCENES) == set(SCENE_PHRASES)

"""The picture grids of docs/miniature.md: python examples/grids.py SUBJECTS [OUT] [MODEL]

SUBJECTS is a folder of cut-outs (docs/training.md says where they come from). The references are identities that
training never showed.
"""

import random
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from realcustom import RealCustomPipeline
from realcustom.data.vocabulary import noun_phrase
from realcustom.data.world import StickerWorld, WorldSettings
from realcustom.pictures.overlays import overlay

SIDE, LINE, MARGIN = 128, 26, 6
CONTEXTS = (
    "on the beach", "in the forest", "in the snow", "in the desert", "on a city street", "in space", "at sunset",
    "underwater",
)  # fmt: skip
TEXTS = (
    "a dog on the beach", "a cat in the forest", "a red car on a city street", "a teddy bear in a living room",
    "a robot in space", "an elephant in the desert", "a penguin in the snow", "a rabbit in a meadow",
    "a blue fish underwater", "a rocket under the night sky", "a lion in the mountains", "an owl in the forest",
    "a turtle on the ocean", "a butterfly in a meadow", "a dinosaur in front of a volcano", "a snowman in the snow",
    "a green cat at sunset", "a dog wearing a hat on the beach", "a penguin wearing a crown in the snow",
    "a yellow car in the desert", "a dog and a cat in a meadow", "a robot, pixel art", "a lion at sunset, watercolor",
    "a purple elephant in space",
)  # fmt: skip
WORDS = ("dog", "cat", "penguin", "car", "robot", "elephant")
PAIRS = (("dog", "cat"), ("robot", "penguin"), ("car", "elephant"), ("owl", "turtle"))
EDITS = ("a {} wearing a hat in the snow", "a {} wearing a crown on the beach", "a {} wearing sunglasses in a meadow",
         "a red {} in the forest", "a blue {} in the desert", "a {} at sunset, pixel art")  # fmt: skip

Cell = tuple[str, Image.Image]


class Painter:
    """Makes cells with one pipeline; references come from held-out identities."""

    def __init__(self, subjects: Path, model: str):
        self.world = StickerWorld(subjects, WorldSettings(split="held-out", plain_reference=1.0))
        self.pipe = RealCustomPipeline.from_pretrained(model)
        self.pipe.set_progress_bar_config(disable=True)

    def reference(self, word: str, number: int = 0) -> Image.Image:
        """The same held-out identity of a word for the same number."""
        rng = random.Random(f"grid-{word}-{number}")
        return Image.fromarray(self.world.reference(self.world.identity(rng, word), rng))

    def paint(self, prompt: str, subjects: dict | None = None, seed: int = 0):
        """The pipeline's output for one image."""
        return self.pipe(prompt, subjects, generator=torch.Generator().manual_seed(seed))

    def cell(self, prompt: str, subjects: dict | None = None, seed: int = 0) -> Cell:
        """A titled image."""
        return prompt, self.paint(prompt, subjects, seed).images[0]


def sheet(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Rows of titled pictures, SIDE pixels each."""
    columns = max(map(len, rows))
    width, height = MARGIN + columns * (SIDE + MARGIN), MARGIN + len(rows) * (SIDE + LINE + MARGIN)
    canvas = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=9)
    for top, row in enumerate(rows):
        for left, (title, picture) in enumerate(row):
            place = MARGIN + left * (SIDE + MARGIN), MARGIN + top * (SIDE + LINE + MARGIN)
            canvas.paste(picture.convert("RGB").resize((SIDE, SIDE)), place)
            draw.text((place[0], place[1] + SIDE + 2), textwrap.fill(title, 26), fill="black", font=font)
    return canvas


def text_to_image(painter: Painter) -> list[list[Cell]]:
    """Plain text-to-image."""
    cells = [painter.cell(prompt, seed=number) for number, prompt in enumerate(TEXTS)]
    return [cells[start : start + 8] for start in range(0, len(cells), 8)]


def contexts(painter: Painter) -> list[list[Cell]]:
    """One reference in eight contexts."""
    rows = []
    for word in WORDS:
        reference = painter.reference(word)
        prompts = [f"{noun_phrase(word)} {context}" for context in CONTEXTS]
        made = [painter.cell(prompt, {word: reference}, seed) for seed, prompt in enumerate(prompts)]
        rows.append([("reference", reference), *made])
    return rows


def two_references(painter: Painter) -> list[list[Cell]]:
    """Two subjects, a reference each."""
    rows = []
    for first, second in PAIRS:
        given = {first: painter.reference(first, 1), second: painter.reference(second, 1)}
        prompts = [f"{noun_phrase(first)} and {noun_phrase(second)} {context}" for context in CONTEXTS[:4]]
        cells = [(f"reference: {word}", image) for word, image in given.items()]
        rows.append([*cells, *(painter.cell(prompt, given, seed) for seed, prompt in enumerate(prompts))])
    return rows


def one_reference(painter: Painter) -> list[list[Cell]]:
    """Two subjects that one reference shows together."""
    rows = []
    for first, second in PAIRS:
        both = np.concatenate([np.asarray(painter.reference(word, 2)) for word in (first, second)], axis=1)
        image = Image.fromarray(both)
        given = {first: image, second: image}
        prompts = [f"{noun_phrase(first)} and {noun_phrase(second)} {context}" for context in CONTEXTS[:5]]
        rows.append([("reference", image), *(painter.cell(prompt, given, seed) for seed, prompt in enumerate(prompts))])
    return rows


def edits(painter: Painter) -> list[list[Cell]]:
    """Accessories, colours and styles on a customised subject."""
    rows = []
    for word in WORDS[:4]:
        reference = painter.reference(word, 3)
        made = [painter.cell(edit.format(word), {word: reference}, seed) for seed, edit in enumerate(EDITS)]
        rows.append([("reference", reference), *made])
    return rows


def masks(painter: Painter) -> list[list[Cell]]:
    """The guidance mask over time, on the finished image."""
    rows = []
    for word in WORDS[:4]:
        reference = painter.reference(word)
        out = painter.paint(f"{noun_phrase(word)} on the beach", {word: reference})
        shown = [0, 4, 8, 12, 18, 24]
        over = [(f"mask at step {step + 1}", overlay(out.images[0], out.masks[word][step, 0])) for step in shown]
        rows.append([("reference", reference), ("image", out.images[0]), *over])
    return rows


GRIDS = (text_to_image, contexts, two_references, one_reference, edits, masks)


def main(subjects: Path, out: Path, model: str) -> None:
    """Write every grid as OUT/NAME.png."""
    painter = Painter(subjects, model)
    out.mkdir(parents=True, exist_ok=True)
    for make in GRIDS:
        sheet(make(painter)).save(out / f"{make.__name__}.png", optimize=True)
        print(out / f"{make.__name__}.png", flush=True)


if __name__ == "__main__":
    given = [*sys.argv[1:], *("subjects", "docs/images", "miniature")[len(sys.argv) - 1 :]]
    main(Path(given[0]), Path(given[1]), given[2])

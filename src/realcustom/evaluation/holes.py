"""Held-out identities drawn into a hole of a picture that is there already, against the same words drawn freely.

A case is a sample of the sticker benchmark: its subject is to stand in a drawn scene of the world, in a hole where the
real composite has it. Both arms have the same prompt, reference and noise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from realcustom.data.world import StickerWorld
from realcustom.pictures.holes import hole_mask

from .generation import Made, Setup, generate, write_json
from .judge import Judge
from .metrics import Estimate
from .sticker_figures import NAMES, References, difference
from .sticker_run import Arm, groups_of, measured
from .stickers import Sample, samples

FIGURES = ("identity_colour", "identity_judge", "similarity", "word", "scene")
MARGIN = 0.08  # of the picture, around the real composite's subject


def hole_samples(world: StickerWorld, count: int, seed: int = 0) -> list[Sample]:
    """Samples with one subject and a scene, each with a picture of that scene and a hole in it.

    Args:
        world: with held-out identities.
        seed: of the images' noise.
    """
    made = []
    for number, sample in enumerate(samples(world, count, seed, order=("scene",))):
        rng = random.Random(f"hole-{world.settings.seed}-{number}")
        picture = world.backgrounds.background(sample.record.attributes["scene"], rng)
        task = replace(sample.task, picture=picture, hole=hole_around(sample.record.masks[0]))
        made.append(replace(sample, task=task))
    return made


def hole_around(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The box around a mask bool (H, W) with `MARGIN` at each side, in fractions of the picture."""
    low, high = [], []
    for axis, side in ((0, mask.shape[1]), (1, mask.shape[0])):
        places = np.flatnonzero(mask.any(axis=axis)) / side
        low.append(max(float(places[0]) - MARGIN, 0.0))
        high.append(min(float(places[-1]) + 1 / side + MARGIN, 1.0))
    return (*low, *high)


def free(made: Sequence[Sample]) -> list[Sample]:
    """The same samples without picture and hole."""
    return [replace(sample, task=replace(sample.task, picture=None, hole=None)) for sample in made]


def run_holes(
    pipe,
    judge: Judge,
    made: Sequence[Sample],
    setup: Setup,
    out: Path,
    *,
    about: dict,
    done: Callable[[int], None] | None = None,
) -> list[list[str]]:
    """Make what is missing, measure, write `out`/results.json.

    Returns:
        the table, header first.
    """
    references, model = References(judge, made), str(about.get("model", ""))
    freely = free(made)
    entries = generate(pipe, [sample.task for sample in made], setup, out / "holes", model=model, done=done)
    later = None if done is None else lambda count: done(len(made) + count)
    others = generate(pipe, [sample.task for sample in freely], setup, out / "free", model=model, done=later)
    arms = measured(judge, "hole", made, references, entries), measured(judge, "free", freely, references, others)
    differences = {name: difference(arms[0].values, arms[1].values, name, groups_of(made)) for name in FIGURES}
    kept = float(np.mean([unchanged(sample, entry) for sample, entry in zip(made, entries, strict=True)]))
    write_json(out / "results.json", results(made, setup, arms, differences, kept, about))
    return table(arms, differences, kept)


def unchanged(sample: Sample, entry: Made) -> float:
    """Share of the pixels outside the hole that are those of the picture, bit for bit."""
    picture: Image.Image = sample.task.picture
    outside = ~hole_mask(sample.task.hole, picture.size)
    same = (np.asarray(entry.image) == np.asarray(picture)).all(axis=2)
    return float(same[outside].mean()) if outside.any() else 1.0


def table(arms: Sequence[Arm], differences: dict[str, Estimate], kept: float) -> list[list[str]]:
    """Header and one line a figure."""
    lines = [["figure", "in the hole", "free", "difference", "n"]]
    for name in FIGURES:
        figures = [arm.figures[name] for arm in arms]
        lines.append([NAMES[name], *map(str, figures), str(differences[name]), str(figures[0].count)])
    return [*lines, ["pixels outside the hole as they were", f"{kept:.4f}", "-", "-", str(len(arms[0].values))]]


def results(
    made: Sequence[Sample],
    setup: Setup,
    arms: Sequence[Arm],
    differences: dict[str, Estimate],
    kept: float,
    about: dict,
) -> dict:
    """Plain JSON values."""
    return {
        "benchmark": "holes",
        "setup": setup.describe(),
        **about,
        "figures": {arm.name: {name: arm.figures[name].to_dict() for name in FIGURES} for arm in arms},
        "difference": {name: value.to_dict() for name, value in differences.items()},
        "unchanged_outside": kept,
        "images": [{"key": s.task.key, "prompt": s.task.prompt, "hole": s.task.hole} for s in made],
    }

"""Measuring a benchmark's images with extractors, and putting the values together.

Values of an image: clip_t; clip_i and dino_i (one subject: mean cosine with its real pictures; several: mean over the
subjects, and .max and .min of them); .segmented where the subject was cut out; one value per preference model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .benchmark import Benchmark, TaskSubject, opened
from .extractors import Extractors
from .generation import Made, Setup
from .metrics import Estimate, bootstrap, clip_t, subject_similarities
from .segment import on_white

Values = dict[str, float]


def measure(
    made: Sequence[Made],
    extractors: Extractors,
    segment: Callable[[Image.Image, np.ndarray], np.ndarray] | None = None,
    segmented: bool = True,
) -> list[Values]:
    """Values of every image, in their order.

    Args:
        segment: (picture, coarse mask) -> mask, sharpens the guidance mask; None takes it as it is.
        segmented: also measure every subject cut out on white.
    """
    pictures = [entry.image for entry in made]
    prompts = [entry.task.prompt for entry in made]
    image_features = {"clip_i": extractors.clip.images(pictures), "dino_i": extractors.dino.images(pictures)}
    values: list[Values] = [{} for _ in made]
    for row, value in zip(values, clip_t(image_features["clip_i"], extractors.clip.texts(prompts)), strict=True):
        row["clip_t"] = float(value)
    references = ReferenceFeatures(extractors)
    for name, features in image_features.items():
        for row, entry, feature in zip(values, made, features, strict=True):
            real = [references.of(name, subject) for subject in entry.task.subjects]
            row |= similarities(name, np.repeat(feature[None], 1, axis=0), real)
    if segmented:
        _add_segmented(values, made, pictures, extractors, references, segment)
    for name, model in extractors.preferences.items():
        for row, value in zip(values, model.scores(pictures, prompts), strict=True):
            row[name] = float(value)
    return values


def similarities(name: str, image: np.ndarray, real: Sequence[np.ndarray]) -> Values:
    """Similarity of one image (1, d) to its subjects' pictures, each (R, d)."""
    found = subject_similarities(image, real)
    values = {name: float(found["mean"][0])}
    if len(real) > 1:
        values |= {f"{name}.{key}": float(found[key][0]) for key in ("max", "min")}
    return values


class ReferenceFeatures:
    """Features of the real pictures, each extracted once."""

    def __init__(self, extractors: Extractors):
        self.models = {"clip_i": extractors.clip, "dino_i": extractors.dino}
        self._known: dict[tuple, np.ndarray] = {}

    def of(self, name: str, subject: TaskSubject) -> np.ndarray:
        """(R, d) of a subject's references."""
        key = (
            name,
            *[str(picture) if not isinstance(picture, Image.Image) else id(picture) for picture in subject.references],
        )
        if key not in self._known:
            self._known[key] = self.models[name].images([opened(picture) for picture in subject.references])
        return self._known[key]


def _add_segmented(values, made, pictures, extractors, references, segment) -> None:
    """Each subject of each image, cut out, against its own real pictures."""
    for row, entry, picture in zip(values, made, pictures, strict=True):
        if not entry.masks or max(mask.max() for mask in entry.masks) <= 0:
            continue
        masks = entry.masks if segment is None else [segment(picture, mask) for mask in entry.masks]
        cut = [on_white(picture, mask) for mask in masks]
        for name, model in (("clip_i", extractors.clip), ("dino_i", extractors.dino)):
            each = [
                subject_similarities(feature[None], [references.of(name, subject)])["mean"][0]
                for feature, subject in zip(model.images(cut), entry.task.subjects, strict=True)
            ]
            row[f"{name}.segmented"] = float(np.mean(each))


def figures(made: Sequence[Made], values: Sequence[Values]) -> dict[str, Estimate]:
    """Mean and interval of every value; intervals draw whole groups."""
    names = list(dict.fromkeys(name for row in values for name in row))
    groups = [entry.task.group for entry in made]
    return {name: bootstrap([row.get(name, float("nan")) for row in values], groups) for name in names}


def results(
    benchmark: Benchmark, setup: Setup, made, values, estimates: dict[str, Estimate], about: dict
) -> dict[str, Any]:
    """Everything a run found, as plain JSON values that do not depend on when or where it ran."""
    return {
        "benchmark": benchmark.name,
        "protocol": benchmark.protocol,
        "setup": setup.describe(),
        **about,
        "figures": {name: value.to_dict() for name, value in estimates.items()},
        "images": [
            {"key": entry.task.key, "prompt": entry.task.prompt, "group": entry.task.group, "facts": entry.task.facts}
            | {"values": row}
            for entry, row in zip(made, values, strict=True)
        ],
    }

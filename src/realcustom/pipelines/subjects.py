"""What the user calls a subject, turned into where its word stands and where it may be.

Shapes: S subjects, B images made, T text tokens, (G, g) mask grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from realcustom.encoders.target_word import agreed_positions, check_disjoint
from realcustom.guidance.attention_maps import Size
from realcustom.pictures.content import Picture
from realcustom.pictures.masks import open_mask
from realcustom.types import Subject


def as_rows(subjects: Mapping | Sequence[Mapping] | None, prompt) -> list[dict[str, Subject]]:
    """The subjects of every prompt, or one entry that all prompts share.

    Raises:
        ValueError: as `as_subjects`; or subjects given one by one are not as many as the prompts, or differ in number.
    """
    if not isinstance(subjects, (list, tuple)):
        return [as_subjects(subjects)]
    if isinstance(prompt, str) or prompt is None or len(prompt) != len(subjects):
        raise ValueError("A list of subjects needs a list of as many prompts.")
    rows = [as_subjects(row) for row in subjects]
    if len({len(row) for row in rows}) != 1:
        raise ValueError("Prompts that are made together need the same number of subjects.")
    return rows


def as_subjects(subjects: Mapping | None) -> dict[str, Subject]:
    """Word -> `Subject`, with every image opened as a `Picture` and checked.

    Raises:
        ValueError: not a mapping, a subject without images, or an image that cannot be read.
    """
    if subjects is None:
        return {}
    if not isinstance(subjects, Mapping):
        raise ValueError('Give subjects as a mapping from a word of the prompt to its image, {"dog": image}.')
    checked = {}
    for word, value in subjects.items():
        subject = Subject.from_any(value)
        images = tuple(Picture.of(image) for image in subject.images)
        checked[word] = replace(subject, images=images)
    return checked


def token_weights(
    tokenizers: Sequence,
    prompts: Sequence[Sequence[str]],
    rows: Sequence[Sequence[str]],
    length: int,
    chunked: bool = False,
) -> torch.Tensor:
    """Where the subjects' words stand.

    Args:
        tokenizers: one, or SDXL's two.
        prompts: per prompt of the batch its text for each tokenizer.
        rows: the words of each prompt's subjects, or one entry for all prompts.
        length: T.
        chunked: whether prompts are read in chunks.

    Returns:
        (B, S, T) float32, 1 at target tokens.

    Raises:
        ValueError: a word is absent, cut off, or overlaps with another one.
    """
    weights = torch.zeros(len(prompts), len(rows[0]), length)
    rows = list(rows) * (len(prompts) if len(rows) == 1 else 1)
    for row, texts, words in zip(weights, prompts, rows, strict=True):
        positions = {word: agreed_positions(tokenizers, texts, word, chunked) for word in words}
        check_disjoint(positions, texts[0])
        for index, word in enumerate(words):
            row[index, list(positions[word])] = 1
    return weights


def region_map(region, grid: Size) -> torch.Tensor:
    """Where a subject may be, as the covered share of each cell, (G, g) float32 in [0, 1].

    Args:
        region: None for everywhere; a box (left, top, right, bottom) in fractions of the output; or a mask image,
            array or path, white where the subject may be.
        grid: rows and columns of the mask.
    """
    if region is None:
        return torch.ones(grid)
    if isinstance(region, tuple):
        left, top, right, bottom = region
        return torch.outer(_covered(top, bottom, grid[0]), _covered(left, right, grid[1]))
    mask = Image.fromarray(open_mask(region)).resize((grid[1], grid[0]), Image.Resampling.BOX)
    return torch.from_numpy(np.array(mask))


def _covered(low: float, high: float, cells: int) -> torch.Tensor:
    """Share of each of `cells` equal cells of [0, 1] that the interval [low, high] covers."""
    edges = torch.arange(cells + 1, dtype=torch.float64) / cells
    return ((edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * cells).float()


def regions_of(rows: Sequence[Sequence[Subject]], grid: Size) -> torch.Tensor | None:
    """(1 or B, S, G, g) regions of all subjects, or None when none has one."""
    if all(subject.region is None for row in rows for subject in row):
        return None
    return torch.stack([torch.stack([region_map(subject.region, grid) for subject in row]) for row in rows])

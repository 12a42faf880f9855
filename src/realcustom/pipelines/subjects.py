"""What the user calls a subject, turned into what the denoising loop needs.

Shapes: R reference images over all subjects, S subjects, B images made, n tokens, T text tokens, (G, g) mask grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from realcustom.encoders.cache import FeatureCache
from realcustom.encoders.image import cat_features
from realcustom.encoders.target_word import agreed_positions, check_disjoint
from realcustom.guidance.attention_maps import Size
from realcustom.models.adapter import RealCustomAdapter, ScoringInputs
from realcustom.models.attention import LayerKeysValues
from realcustom.pictures.masks import open_mask
from realcustom.pictures.opening import open_image
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
    """Word -> `Subject`, with every image opened and checked.

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
        images = tuple(open_image(image) for image in subject.images)
        checked[word] = replace(subject, images=images)
    return checked


def token_weights(
    tokenizers: Sequence, prompts: Sequence[Sequence[str]], rows: Sequence[Sequence[str]], length: int
) -> torch.Tensor:
    """Where the subjects' words stand.

    Args:
        tokenizers: one, or SDXL's two.
        prompts: per prompt of the batch its text for each tokenizer.
        rows: the words of each prompt's subjects, or one entry for all prompts.
        length: T.

    Returns:
        (B, S, T) float32, 1 at target tokens.

    Raises:
        ValueError: a word is absent, cut off, or overlaps with another one.
    """
    weights = torch.zeros(len(prompts), len(rows[0]), length)
    rows = list(rows) * (len(prompts) if len(rows) == 1 else 1)
    for row, texts, words in zip(weights, prompts, rows, strict=True):
        positions = {word: agreed_positions(tokenizers, texts, word) for word in words}
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


def token_owners(subjects: Sequence[Subject]) -> list[int]:
    """For each reference image the index of its subject."""
    return [index for index, subject in enumerate(subjects) for _ in subject.images]


def group_by_subject(
    layers: Sequence[LayerKeysValues], owners: Sequence[int], most: int | None = None
) -> list[LayerKeysValues]:
    """Keys and values of R images to those of S subjects: the images of a subject one after another.

    Args:
        layers: per layer (B, R, n, C).
        owners: subject of each image.
        most: m; None is the largest number of images of a subject.

    Returns:
        per layer (B, S, m * n, C); subjects with fewer images are padded with their own first one, which `token_bias`
        masks out.
    """
    columns = _columns(owners, most)
    return [tuple(rearrange(tensor[:, columns], "b s m n c -> b s (m n) c") for tensor in pair) for pair in layers]


def token_bias(rows: Sequence[Sequence[Subject]], tokens: int) -> torch.Tensor | None:
    """What the attention adds at each token of an image, for the images' weights and against padding.

    Args:
        rows: per prompt its subjects.
        tokens: n, of one image.

    Returns:
        (1 or B, S, m * n) with m the largest number of images of a subject: bool where every image counts fully, else
        float, the logarithm of the image's weight; None where there is nothing to add.
    """
    most = max(len(subject.images) for row in rows for subject in row)
    weights = torch.zeros(len(rows), len(rows[0]), most)
    for row, subjects in zip(weights, rows, strict=True):
        for index, subject in enumerate(subjects):
            row[index, : len(subject.images)] = torch.tensor(subject.weights or [1.0] * len(subject.images))
    if (weights == 1).all():
        return None
    full = ((weights == 0) | (weights == 1)).all()
    return (weights > 0 if full else weights.log()).repeat_interleave(tokens, dim=2)


def _columns(owners: Sequence[int], most: int | None = None) -> torch.Tensor:
    """(S, m) indices of each subject's images, padded with its first one."""
    subjects = [[image for image, owner in enumerate(owners) if owner == index] for index in range(max(owners) + 1)]
    most = most or max(map(len, subjects))
    return torch.tensor([images + images[:1] * (most - len(images)) for images in subjects])


def reference_functions(
    adapter: RealCustomAdapter,
    cache: FeatureCache,
    rows: Sequence[Sequence[Subject]],
    text: torch.Tensor,
    keep_share: float,
) -> tuple[Callable, Callable, torch.Tensor | None]:
    """The `reference`, `negative_reference` and `reference_keep` of the loop's conditions.

    RealCustom++: computed here, once for all steps. RealCustom: its scoring module reads the latents of each step,
    so the keys and values are made anew at each.

    Args:
        rows: per prompt its subjects, or one entry for all prompts.
        text: (B, T, c) prompt embeddings, the scoring module's textual context.
        keep_share: gamma_num, share of the visual tokens the scoring module keeps.

    Raises:
        ValueError: the adapter has a scoring module, and subjects differ by prompt or weigh their images.
    """
    if adapter.scoring is not None:
        if len(rows) > 1 or any(subject.weights is not None for subject in rows[0]):
            raise ValueError("An adapter with a scoring module takes one set of subjects, whose images weigh alike.")
        return _scored_functions(adapter, cache, rows[0], text, keep_share)
    most = max(len(subject.images) for row in rows for subject in row)
    positive, negative = [], []
    for subjects in rows:
        owners = token_owners(subjects)
        for kept, features in zip((positive, negative), _features(adapter, cache, subjects), strict=True):
            layers = [(key[None], value[None]) for key, value in adapter(features)]
            kept.append(group_by_subject(layers, owners, most))
    positive, negative = _along_batch(positive), _along_batch(negative)
    bias = token_bias(rows, positive[0][0].shape[2] // most)
    return lambda *_: positive, lambda *_: negative, None if bias is None else bias.to(adapter.device)


def _features(adapter: RealCustomAdapter, cache: FeatureCache, subjects: Sequence[Subject]):
    """Features of all references and, as many, of the all-zero image."""
    images = [image for subject in subjects for image in subject.images]
    features, zero = cat_features([cache.image(image) for image in images]), cat_features([cache.zero()] * len(images))
    return features.to(adapter.device, adapter.dtype), zero.to(adapter.device, adapter.dtype)


def _along_batch(rows: Sequence[list[LayerKeysValues]]) -> list[LayerKeysValues]:
    if len(rows) == 1:
        return rows[0]
    return [tuple(torch.cat(pair) for pair in zip(*layer, strict=True)) for layer in zip(*rows, strict=True)]


def _scored_functions(adapter, cache, subjects: Sequence[Subject], text: torch.Tensor, keep_share: float):
    owners = token_owners(subjects)
    dtype = adapter.dtype

    def scored(given):
        def keys_values(latents, alpha_bar, masks):
            inputs = ScoringInputs(
                text=text.to(dtype),
                latents=latents.to(dtype),
                masks=masks[:, owners].to(dtype),
                alpha_bar=alpha_bar.to(latents.device, dtype),
                keep=keep_share,
            )
            layers = adapter(given, inputs)
            return group_by_subject(
                [tuple(rearrange(t, "(b r) n c -> b r n c", r=len(owners)) for t in pair) for pair in layers], owners
            )

        return keys_values

    features, zero = _features(adapter, cache, subjects)
    return scored(features), scored(zero), None

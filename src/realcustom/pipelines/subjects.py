"""What the user calls a subject, turned into what the denoising loop needs.

Shapes: R reference images over all subjects, S subjects, B images made, n tokens, T text tokens, (G, g) mask grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from realcustom.encoders.cache import FeatureCache
from realcustom.encoders.image import cat_features
from realcustom.encoders.target_word import agreed_positions, check_disjoint
from realcustom.guidance.attention_maps import Size
from realcustom.images import open_image
from realcustom.models.adapter import RealCustomAdapter, ScoringInputs
from realcustom.models.attention import LayerKeysValues
from realcustom.types import Subject


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
        checked[word] = Subject(images, strength=subject.strength, region=subject.region)
    return checked


def token_weights(tokenizers: Sequence, prompts: Sequence[Sequence[str]], words: Sequence[str], length: int):
    """Where the subjects' words stand.

    Args:
        tokenizers: one, or SDXL's two.
        prompts: per prompt of the batch its text for each tokenizer.
        words: the subjects' words.
        length: T.

    Returns:
        (B, S, T) float32, 1 at target tokens.

    Raises:
        ValueError: a word is absent, cut off, or overlaps with another one.
    """
    weights = torch.zeros(len(prompts), len(words), length)
    for row, texts in zip(weights, prompts, strict=True):
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
    mask = open_image(region).convert("L").resize((grid[1], grid[0]), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255)


def _covered(low: float, high: float, cells: int) -> torch.Tensor:
    """Share of each of `cells` equal cells of [0, 1] that the interval [low, high] covers."""
    edges = torch.arange(cells + 1, dtype=torch.float64) / cells
    return ((edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * cells).float()


def regions_of(subjects: Sequence[Subject], grid: Size) -> torch.Tensor | None:
    """(1, S, G, g) regions of all subjects, or None when none has one."""
    if all(subject.region is None for subject in subjects):
        return None
    return torch.stack([region_map(subject.region, grid) for subject in subjects]).unsqueeze(0)


def token_owners(subjects: Sequence[Subject]) -> list[int]:
    """For each reference image the index of its subject."""
    return [index for index, subject in enumerate(subjects) for _ in subject.images]


def group_by_subject(layers: Sequence[LayerKeysValues], owners: Sequence[int]) -> list[LayerKeysValues]:
    """Keys and values of R images to those of S subjects: the images of a subject one after another.

    Args:
        layers: per layer (B, R, n, C).
        owners: subject of each image.

    Returns:
        per layer (B, S, m * n, C), m the largest number of images of a subject; shorter ones are padded with their
        own first image, which `keep_of` masks out.
    """
    columns = _columns(owners)
    return [tuple(rearrange(tensor[:, columns], "b s m n c -> b s (m n) c") for tensor in pair) for pair in layers]


def keep_of(owners: Sequence[int], tokens: int) -> torch.Tensor | None:
    """(1, S, m * tokens) bool, False at padding; None where every subject has as many images."""
    counts = torch.bincount(torch.tensor(owners))
    if (counts == counts[0]).all():
        return None
    rows = torch.arange(int(counts.max())).unsqueeze(0) < counts.unsqueeze(1)
    return rows.repeat_interleave(tokens, dim=1).unsqueeze(0)


def _columns(owners: Sequence[int]) -> torch.Tensor:
    """(S, m) indices of each subject's images, padded with its first one."""
    subjects = [[image for image, owner in enumerate(owners) if owner == index] for index in range(max(owners) + 1)]
    most = max(map(len, subjects))
    return torch.tensor([images + images[:1] * (most - len(images)) for images in subjects])


def reference_functions(
    adapter: RealCustomAdapter, cache: FeatureCache, subjects: Sequence[Subject], text: torch.Tensor, keep_share: float
) -> tuple[Callable, Callable, torch.Tensor | None]:
    """The `reference`, `negative_reference` and `reference_keep` of the loop's conditions.

    RealCustom++: computed here, once for all steps. RealCustom: its scoring module reads the latents of each step,
    so the keys and values are made anew at each.

    Args:
        text: (B, T, c) prompt embeddings, the scoring module's textual context.
        keep_share: gamma_num, share of the visual tokens the scoring module keeps.
    """
    owners = token_owners(subjects)
    features = cat_features([cache.image(image) for subject in subjects for image in subject.images])
    zero = cat_features([cache.zero()] * len(owners))
    device, dtype = adapter.device, adapter.dtype
    features, zero = features.to(device, dtype), zero.to(device, dtype)
    if adapter.scoring is None:
        positive, negative = (
            group_by_subject([(key[None], value[None]) for key, value in adapter(given)], owners)
            for given in (features, zero)
        )
        tokens = positive[0][0].shape[2] // max(owners.count(owner) for owner in owners)
        keep = keep_of(owners, tokens)
        return lambda *_: positive, lambda *_: negative, None if keep is None else keep.to(device)

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

    return scored(features), scored(zero), None

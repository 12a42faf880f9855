"""Reference pictures to what the generation branch sees of them, through encoder and adapter.

Shapes: R reference images over all subjects, S subjects, B images made, n tokens of a reference, C width of a layer,
(G, g) mask grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange

from realcustom.encoders.cache import FeatureCache
from realcustom.encoders.image import ReferenceFeatures, cat_features
from realcustom.models.adapter import RealCustomAdapter, ScoringInputs
from realcustom.models.attention import LayerKeysValues, VisualKeysValues
from realcustom.types import Subject


@dataclass(frozen=True)
class FixedReferences:
    """RealCustom++: keys and values that no step changes."""

    keys_values: VisualKeysValues
    zero: VisualKeysValues

    def positive(self, *_) -> VisualKeysValues:
        """Of the references."""
        return self.keys_values

    def negative(self, *_) -> VisualKeysValues:
        """Of the all-zero image, which stands for every subject's."""
        return self.zero


@dataclass(frozen=True)
class ScoredReferences:
    """RealCustom: its scoring module reads the latents of each step, so keys and values are made anew at each.

    Attributes:
        adapter: with a scoring module.
        features, zero: of the R references and of as many all-zero images.
        owners: subject of each reference.
        text: (B, T, c) prompt embeddings, the textual context.
        keep_share: gamma_num, share of the visual tokens kept.
        alphas_cumprod: (T,) of the scheduler.
    """

    adapter: RealCustomAdapter
    features: ReferenceFeatures
    zero: ReferenceFeatures
    owners: tuple[int, ...]
    text: torch.Tensor
    keep_share: float
    alphas_cumprod: torch.Tensor

    def positive(self, latents: torch.Tensor, timestep: torch.Tensor, masks: torch.Tensor) -> VisualKeysValues:
        """Of the references, for latents (B, C, h, w) of unit variance and masks (B, S, G, g)."""
        return self._keys_values(self.features, latents, timestep, masks)

    def negative(self, latents: torch.Tensor, timestep: torch.Tensor, masks: torch.Tensor) -> VisualKeysValues:
        """Of the all-zero images."""
        return self._keys_values(self.zero, latents, timestep, masks)

    def _keys_values(self, features, latents, timestep, masks) -> VisualKeysValues:
        dtype = self.adapter.dtype
        inputs = ScoringInputs(
            text=self.text.to(dtype),
            latents=latents[:, : self.adapter.config.scoring_config.get("latent_channels", 4)].to(dtype),
            masks=masks[:, list(self.owners)].to(dtype),
            alpha_bar=self.alphas_cumprod[timestep.round().long()].to(latents.device, dtype),
            keep=self.keep_share,
        )
        layers = [
            tuple(rearrange(tensor, "(b r) n c -> b r n c", r=len(self.owners)) for tensor in pair)
            for pair in self.adapter(features, inputs)
        ]
        return VisualKeysValues(group_by_subject(layers, self.owners))


def fixed_references(
    adapter: RealCustomAdapter, cache: FeatureCache, rows: Sequence[Sequence[Subject]], device: torch.device
) -> FixedReferences:
    """The references of RealCustom++, computed once for all steps.

    Args:
        rows: per prompt its subjects, or one entry for all prompts.
        device: that computes; where the weights lie may be another place until they are needed.
    """
    most = max(len(subject.images) for row in rows for subject in row)
    layers = []
    for subjects in rows:
        pairs = [(key[None], value[None]) for key, value in adapter(_features(adapter, cache, subjects, device))]
        layers.append(group_by_subject(pairs, token_owners(subjects), most))
    joined = layers[0]
    if len(rows) > 1:
        joined = [tuple(torch.cat(pair) for pair in zip(*layer, strict=True)) for layer in zip(*layers, strict=True)]
    bias = token_bias(rows, joined[0][0].shape[2] // most)
    zero = [(key[None], value[None]) for key, value in adapter(cache.zero(device).to(device, adapter.dtype))]
    return FixedReferences(
        VisualKeysValues(joined, None if bias is None else bias.to(device)),
        VisualKeysValues(zero),
    )


def scored_references(
    adapter: RealCustomAdapter,
    cache: FeatureCache,
    rows: Sequence[Sequence[Subject]],
    text: torch.Tensor,
    keep_share: float,
    scheduler,
) -> ScoredReferences:
    """The references of RealCustom, whose scoring module reads the state of each step.

    Args:
        rows: one entry for all prompts.
        text: (B, T, c) prompt embeddings.

    Raises:
        ValueError: subjects differ by prompt, weigh their images or have unequal numbers of them; or the scheduler
            does not tell how much signal is left at a timestep.
    """
    subjects = rows[0]
    if len(rows) > 1 or any(subject.weights is not None for subject in subjects):
        raise ValueError("An adapter with a scoring module takes one set of subjects, whose images weigh alike.")
    if len({len(subject.images) for subject in subjects}) > 1:
        raise ValueError("With a RealCustom scoring adapter every subject needs the same number of images.")
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"An adapter with a scoring module cannot be used with {type(scheduler).__name__}, which does not tell "
            "the signal level of a timestep (alphas_cumprod): choose DDIMScheduler or DPMSolverMultistepScheduler."
        )
    features = _features(adapter, cache, subjects, text.device)
    zero = cat_features([cache.zero(text.device)] * len(features)).to(text.device, adapter.dtype)
    owners = tuple(token_owners(subjects))
    return ScoredReferences(adapter, features, zero, owners, text, keep_share, scheduler.alphas_cumprod.to(text.device))


def _features(
    adapter: RealCustomAdapter, cache: FeatureCache, subjects: Sequence[Subject], device: torch.device
) -> ReferenceFeatures:
    """Features of all references of all subjects."""
    pictures = [picture for subject in subjects for picture in subject.images]
    return cat_features([cache.image(picture, device) for picture in pictures]).to(device, adapter.dtype)


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
    if columns == [[index] for index in range(len(owners))]:
        return list(layers)
    return [tuple(rearrange(tensor[:, columns], "b s m n c -> b s (m n) c") for tensor in pair) for pair in layers]


def _columns(owners: Sequence[int], most: int | None = None) -> list[list[int]]:
    """[S][m] indices of each subject's images, padded with its first one."""
    subjects = [[image for image, owner in enumerate(owners) if owner == index] for index in range(max(owners) + 1)]
    most = most or max(map(len, subjects))
    return [images + images[:1] * (most - len(images)) for images in subjects]


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

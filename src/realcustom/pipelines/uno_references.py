"""Reference pictures to the tokens that UNO's transformer reads beside the image's.

Shapes: B images or 1, S subjects, R references, n tokens of all references, (r, c) the image's rows and columns of
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from realcustom.encoders.reference_latents import Fit, exact_fit, prepare_reference, reference_latents, reference_side
from realcustom.guidance.attention_maps import Size
from realcustom.models.flow import TokenCount, released_tokens
from realcustom.models.flux import Sight, SubjectReferences
from realcustom.models.uno import Place, diagonal, reference_tokens
from realcustom.types import Subject


@dataclass(frozen=True, kw_only=True)
class UnoSettings:
    """How references are read, placed and seen. The defaults are UNO's, with exact sizes.

    Attributes:
        side: (number of references) -> long side of each in pixels.
        fit: their size before the cut to multiples of 16; `released_fit` has the release's rounding.
        place: where they stand; `realcustom.models.uno.PLACES` has all four.
        token_count: (height, width) -> number of tokens that shifts the times; `image_tokens` is the true one.
        sight: what sees what.
    """

    side: Callable[[int], int] = reference_side
    fit: Fit = exact_fit
    place: Place = diagonal
    token_count: TokenCount = released_tokens
    sight: Sight = field(default_factory=Sight)


@dataclass(frozen=True)
class SameReferences:
    """UNO's references, the same at every step and for the negative prompt as well."""

    references: SubjectReferences

    def positive(self, *_) -> SubjectReferences:
        """For the prompt."""
        return self.references

    def negative(self, *_) -> SubjectReferences:
        """For the negative prompt: true guidance then changes the text alone."""
        return self.references


@dataclass(frozen=True)
class Shown:
    """The pictures of one prompt.

    Attributes:
        images: R pictures.
        shares: (R, S) how much each counts for each subject.
    """

    images: tuple[Image.Image, ...]
    shares: torch.Tensor


def shown_to_all(images: Sequence[Image.Image]) -> Shown:
    """References without a word: each is a subject of its own."""
    return Shown(tuple(images), torch.eye(len(images)))


def shown_subjects(subjects: Sequence[Subject]) -> Shown:
    """The subjects' images, each with its weight; a picture that several subjects share stands once, for all."""
    images: dict[str, Image.Image] = {}
    shares: dict[str, torch.Tensor] = {}
    for index, subject in enumerate(subjects):
        weights = subject.weights or (1.0,) * len(subject.images)
        for picture, weight in zip(subject.images, weights, strict=True):
            images.setdefault(picture.sha256, picture.image)
            row = shares.setdefault(picture.sha256, torch.zeros(len(subjects)))
            row[index] = max(row[index].item(), weight)
    return Shown(tuple(images.values()), torch.stack(list(shares.values())))


def encode_references(
    vae, shown: Sequence[Shown], grid: Size, settings: UnoSettings, device: torch.device
) -> SubjectReferences:
    """Pictures to tokens.

    Args:
        vae: diffusers' AutoencoderKL.
        shown: of every image, or one entry for all.
        grid: (r, c).
        device: where the VAE computes.

    Raises:
        ValueError: the references of prompts that are made together differ in number or size.
    """
    rows = [
        [prepare_reference(image, settings.side(len(each.images)), settings.fit) for image in each.images]
        for each in shown
    ]
    if len({tuple(image.size for image in row) for row in rows}) > 1:
        raise ValueError(
            "Prompts that are made together need references of the same number and sizes: make them one by one."
        )
    latents = [reference_latents(vae, row, device) for row in rows]
    slots = [torch.cat(slot) for slot in zip(*latents, strict=True)]
    tokens = reference_tokens(slots, grid, settings.place)
    shares = torch.stack([each.shares for each in shown]).to(device)
    return SubjectReferences(tokens=tokens, shares=shares, sight=settings.sight)

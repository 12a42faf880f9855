"""From latents to images, and what a call returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from diffusers.utils import BaseOutput


@dataclass
class RealCustomOutput(BaseOutput):
    """Result of a pipeline call.

    Attributes:
        images: list of PIL images, or an array / tensor by `output_type`.
        masks: per target word (steps, images, G, g) float32 on the CPU: the guidance mask used at each step; where
            every prompt had subjects of its own, a list with such a mapping for each image.
        nsfw_content_detected: the safety checker's verdicts, where the pipeline has one.
    """

    images: list | torch.Tensor
    masks: dict[str, torch.Tensor] | list[dict[str, torch.Tensor]] = field(default_factory=dict)
    nsfw_content_detected: list[bool] | None = None


def decode_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1], in the VAE's own statistics and a safe dtype.

    A VAE marked `force_upcast` (SDXL's) overflows in float16 and decodes in float32.
    """
    config = vae.config
    dtype = vae.dtype
    upcast = dtype == torch.float16 and getattr(config, "force_upcast", False)
    if upcast:
        vae.to(dtype=torch.float32)
    try:
        image = vae.decode(_unscaled(latents.to(vae.dtype), config), return_dict=False)[0]
    finally:
        if upcast:
            vae.to(dtype=dtype)
    return image


def _unscaled(latents: torch.Tensor, config) -> torch.Tensor:
    """Latents of unit variance to the VAE's own statistics."""
    if getattr(config, "latents_mean", None) is None or getattr(config, "latents_std", None) is None:
        latents = latents / config.scaling_factor
        shift = getattr(config, "shift_factor", None)
        return latents if shift is None else latents + shift
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1).to(latents) for values in (config.latents_mean, config.latents_std)
    )
    return latents * std / config.scaling_factor + mean


def named_masks(
    masks: torch.Tensor, rows: Sequence[Mapping]
) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
    """Masks (steps, B, S, G, g) by target word: for the whole batch, or for each image where words differ.

    Args:
        rows: the subjects by word of every prompt, or one entry for all.
    """
    if len(rows) == 1:
        return {word: masks[:, :, index] for index, word in enumerate(rows[0])}
    each = masks.shape[1] // len(rows)
    return [
        {word: masks[:, image : image + 1, index] for index, word in enumerate(rows[image // each])}
        for image in range(masks.shape[1])
    ]

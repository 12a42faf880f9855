"""Reference pictures to clean latents, the way UNO reads them.

Shapes: C latent channels, (H, W) pixels in multiples of 16, (h, w) = (H / 8, W / 8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from realcustom.pictures.opening import ImageSource, open_image

GRID = 16  # pixels of a token's side
SINGLE_SIDE, SEVERAL_SIDE = 512, 320  # long side in pixels of one reference, and of each of several

Fit = Callable[[tuple[int, int], int], tuple[int, int]]
"""(width and height of a picture, long side) -> width and height it is resized to."""


def exact_fit(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """The long side as given, the other in proportion, rounded down; at least 1."""
    longest = max(size)
    width, height = (max(1, long_side * side // longest) for side in size)
    return width, height


def released_fit(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """As UNO's release: it divides before it multiplies, so that some sizes lose a pixel, and with it 16."""
    width, height = size
    if width >= height:
        return long_side, int(long_side / width * height)
    return int(long_side / height * width), long_side


def reference_side(count: int) -> int:
    """Long side in pixels of each of `count` references: 512 alone, 320 in company (the release's rule)."""
    return SINGLE_SIDE if count <= 1 else SEVERAL_SIDE


def prepare_reference(source: ImageSource, long_side: int, fit: Fit = exact_fit) -> Image.Image:
    """A picture of any kind as UNO takes it: upright RGB, transparency over white, resized, cut to multiples of 16.

    The cut takes equally from both ends. A side too short for 16 pixels is filled up with white.

    Args:
        source: whatever `open_image` opens.
        long_side: in pixels, from 16 on.
        fit: the size before the cut.

    Raises:
        ValueError: the picture cannot be opened, or the long side is below 16.
    """
    if long_side < GRID:
        raise ValueError(f"The long side of a reference is {long_side} pixels; {GRID} is the least.")
    image = open_image(source)
    width, height = (max(1, side) for side in fit(image.size, long_side))
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    size = tuple(max(GRID, side // GRID * GRID) for side in (width, height))
    if min(width, height) < GRID:
        canvas = Image.new("RGB", tuple(max(GRID, side) for side in (width, height)), "white")
        canvas.paste(image, tuple((whole - side) // 2 for whole, side in zip(canvas.size, image.size, strict=True)))
        image = canvas
    left, top = ((side - kept) // 2 for side, kept in zip(image.size, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))


def pixels(image: Image.Image) -> torch.Tensor:
    """An RGB picture as (1, 3, H, W) float32 in [-1, 1]."""
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> 1 c h w").float() / 255 * 2 - 1


def encode(vae, images: torch.Tensor, device: torch.device | str | None = None) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, C, h, w) as the transformer takes them.

    The mean of the posterior: the same picture gives the same latents, so that a seed is one image. The release draws
    a sample from a generator that nothing seeds.

    Args:
        device: where the VAE computes; None is where it is, which is not the same while its weights are offloaded.
    """
    mean = vae.encode(images.to(device or vae.device, vae.dtype)).latent_dist.mode()
    return (mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def reference_latents(
    vae, images: Sequence[Image.Image], device: torch.device | str | None = None
) -> list[torch.Tensor]:
    """Prepared pictures of any sizes to latents, each (1, C, h, w); `device` as in `encode`."""
    return [encode(vae, pixels(image), device) for image in images]

"""Where a run starts from a picture: how much of it is drawn anew, and what of it stays.

Image to image begins at the timestep that a share of the steps leaves (SDEdit, Meng et al. 2022). Inpainting draws in
a hole: a network that knows holes reads the mask and the rest of the picture beside its latents; for any other network
the rest is put back after every step, noised to where the latents stand (RePaint, Lugmayr et al. 2022, without its
resampling). Both as diffusers' pipelines of these names do it.

Shapes: pixels (1 or B, 3, H, W) in [-1, 1], holes (1 or B, 1, H, W) of 0 and 1, latents (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from realcustom.pictures.masks import mask_picture, open_mask
from realcustom.pictures.opening import open_image
from realcustom.types import Subject

STRENGTH, HOLE_STRENGTH = 0.8, 1.0  # diffusers' defaults of image to image and of inpainting
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A start picture as the run sees it, cut to what is drawn.

    Attributes:
        pixels: the picture.
        hole: where it is drawn anew; None is everywhere.
        strength: share of the steps that are run, above 0 to 1; at 1 a picture is no more than its size.
        frame: what of the picture is seen: left, top, right, bottom as shares of its width and height.
        paste: puts a finished picture back into the whole one; None where the whole one is drawn.
        size: width and height of the whole one, and `crop`, how diffusers' image processor cuts the frame out of
            pictures of that size; None and nothing where the whole one is drawn.
    """

    pixels: torch.Tensor
    hole: torch.Tensor | None
    strength: float
    frame: tuple[float, float, float, float] = WHOLE
    paste: Any = None
    size: tuple[int, int] | None = None
    crop: Mapping[str, Any] = field(default_factory=dict)

    def placed(self, masks: torch.Tensor) -> torch.Tensor:
        """Masks (..., G, g) of what is drawn as those of the whole picture, 0 around it."""
        if self.frame == WHOLE:
            return masks
        left, top, right, bottom = self.frame
        height, width = (
            round(side / span) for side, span in zip(masks.shape[-2:], (bottom - top, right - left), strict=True)
        )
        row, column = round(top * height), round(left * width)
        above, before = min(row, height - masks.shape[-2]), min(column, width - masks.shape[-1])
        around = (before, width - masks.shape[-1] - before, above, height - masks.shape[-2] - above)
        return F.pad(masks, around)

    @property
    def hole_picture(self) -> Image.Image | None:
        """The hole within the frame, as the region of the subjects that have none."""
        return None if self.hole is None else mask_picture(self.hole[0, 0].numpy())


def canvas_of(call: Mapping[str, Any], vae_scale_factor: int) -> Canvas | None:
    """The start picture of a call: None where it names none.

    Args:
        call: `image`, `mask_image`, `strength` and `padding_mask_crop`, with height and width.

    Raises:
        ValueError: in one sentence, what does not fit together.
    """
    if call["image"] is None:
        for name in ("mask_image", "strength", "padding_mask_crop"):
            if call[name] is not None:
                raise ValueError(f"{name} belongs to a start picture: give image, too.")
        return None
    strength = call["strength"]
    if strength is None:
        strength = STRENGTH if call["mask_image"] is None else HOLE_STRENGTH
    if not 0 < strength <= 1:
        raise ValueError(f"strength is the share of the steps that are run, above 0 up to 1, not {strength}.")
    image = opened(call["image"])
    pictures = VaeImageProcessor(vae_scale_factor=vae_scale_factor)
    size = {"height": call["height"], "width": call["width"]}
    if call["mask_image"] is None:
        if call["padding_mask_crop"] is not None:
            raise ValueError("padding_mask_crop is the room around a hole: give mask_image, too.")
        return Canvas(pixels=pictures.preprocess(image, **size).float(), hole=None, strength=strength)
    holes = VaeImageProcessor(
        vae_scale_factor=vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    mask = opened_hole(call["mask_image"], image)
    crop = {}
    if call["padding_mask_crop"] is not None:
        if not isinstance(image, Image.Image):
            raise ValueError("padding_mask_crop needs one picture and one mask, not a batch.")
        box = holes.get_crop_region(mask, size["width"], size["height"], pad=call["padding_mask_crop"])
        crop = {"crops_coords": box, "resize_mode": "fill"}
    pixels = pictures.preprocess(image, **size, **crop).float()
    hole = holes.preprocess(mask, **size, **crop)
    if not hole.any():
        raise ValueError("The hole is empty at this size: nothing would be drawn.")
    if not crop:
        return Canvas(pixels=pixels, hole=hole, strength=strength)
    shares = [side / length for side, length in zip(box, (*image.size, *image.size), strict=True)]

    def paste(finished: Image.Image) -> Image.Image:
        return pictures.apply_overlay(mask, image, finished, box)

    return Canvas(
        pixels=pixels, hole=hole, strength=strength, frame=tuple(shares), paste=paste, size=image.size, crop=crop
    )


def start_size(call: Mapping[str, Any], vae_scale_factor: int) -> tuple[int, int] | None:
    """Height and width of a start picture that is drawn anew as a whole, cut to the model's grid, as diffusers does; a
    picture with a hole is drawn at the model's own size. None where there is no such picture."""
    image = call["image"]
    if image is None or call["mask_image"] is not None:
        return None
    picture = image[0] if isinstance(image, (list, tuple)) else image
    height, width = VaeImageProcessor(vae_scale_factor=vae_scale_factor).get_default_height_width(opened(picture))
    return height, width


def within(rows: Sequence[Sequence[Subject]], canvas: Canvas) -> list[list[Subject]]:
    """Subjects with their regions as the canvas shows them; the region of those that have none is the hole."""
    return [[replace(subject, region=_region(subject.region, canvas)) for subject in row] for row in rows]


def _region(region: Any, canvas: Canvas) -> Any:
    if region is None:
        return canvas.hole_picture
    if canvas.frame == WHOLE:
        return region
    left, top, right, bottom = canvas.frame
    if isinstance(region, tuple):
        sides = zip(region, (left, top, left, top), (right, bottom, right, bottom), strict=True)
        box = tuple(min(max((side - low) / (high - low), 0.0), 1.0) for side, low, high in sides)
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError("A subject's region lies outside the part of the picture that is drawn: move or drop it.")
        return box
    mask = mask_picture(open_mask(region))
    width, height = mask.size
    return mask.crop([round(side) for side in (left * width, top * height, right * width, bottom * height)])


def opened(image: Any) -> Any:
    """A picture of a path, bytes or PIL image as sRGB; batches and tensors as diffusers takes them."""
    return open_image(image) if isinstance(image, (str, PathLike, bytes, Image.Image)) else image


def opened_hole(mask: Any, image: Any) -> Any:
    """A hole as a grey picture, white where the picture is drawn anew, as large as the picture; tensors as they are."""
    if isinstance(mask, (torch.Tensor, list)):
        return mask
    hole = mask_picture(open_mask(mask)).convert("L")
    if isinstance(image, Image.Image) and hole.size != image.size:
        hole = hole.resize(image.size, Image.Resampling.BILINEAR)
    return hole


@dataclass(frozen=True, kw_only=True)
class Rest:
    """What stays of the start picture where there is no hole.

    Attributes:
        latents: of the start picture.
        noise: that it was given at the start.
        hole: (B, 1, h, w), 1 where the latents of the run count.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    hole: torch.Tensor

    def around(self, latents: torch.Tensor, scheduler, later: torch.Tensor) -> torch.Tensor:
        """The run's latents in the hole, around it the picture's, noised to the next of the timesteps to come."""
        rest = self.latents
        if len(later):
            rest = scheduler.add_noise(rest, self.noise, later[:1])
        return (1 - self.hole) * rest + self.hole * latents


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run starts.

    Attributes:
        latents: as the scheduler takes them first.
        rest: what is put back after every step; None where nothing is, or where the network knows holes.
        beside: (B, 1 + C, h, w) mask and masked picture, which such a network reads behind its latents; or None.
    """

    latents: torch.Tensor
    rest: Rest | None = None
    beside: torch.Tensor | None = None


def shortened(scheduler, timesteps: torch.Tensor, steps: int, strength: float) -> tuple[torch.Tensor, int]:
    """The last `strength` of the timesteps, and the number of their steps.

    Raises:
        ValueError: not one step is left.
    """
    count = min(int(steps * strength), steps)
    if count < 1:
        raise ValueError(f"Of {steps} steps a share of {strength:g} is less than one: raise one of the two.")
    first = (steps - count) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return timesteps[first:], count


def start_of(
    canvas: Canvas, pipe, timestep: torch.Tensor, count: int, generator, noise: torch.Tensor | None = None
) -> Start:
    """Where the run of `count` images starts, at its first timestep.

    Args:
        pipe: with vae, unet and scheduler.
        noise: (B, C, h, w); None draws it, after the picture's own latents, as diffusers does.

    Raises:
        ValueError: the network's input fits neither a whole picture nor one with a hole.
    """
    vae, device, dtype, width = pipe.vae, pipe._execution_device, pipe.unet.dtype, pipe.unet.config.in_channels
    channels, pixels = vae.config.latent_channels, canvas.pixels.to(device)
    native = canvas.hole is not None and width == 2 * channels + 1
    if width != channels and not native:
        raise ValueError(f"A base model with {width} input channels cannot draw on a picture here: {channels} can.")
    noise_only = canvas.hole is not None and canvas.strength == 1.0
    clean = None if native and noise_only else encode_latents(vae, pixels, count, generator).to(dtype)
    if noise is None:
        shape = (count, channels, *(side // pipe.vae_scale_factor for side in pixels.shape[-2:]))
        noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
    noise = noise.to(device, dtype)
    if noise_only:
        latents = noise * pipe.scheduler.init_noise_sigma
    else:
        latents = pipe.scheduler.add_noise(clean, noise, timestep.repeat(count))
    if canvas.hole is None:
        return Start(latents=latents)
    hole = F.interpolate(canvas.hole, size=noise.shape[-2:]).to(device, dtype)
    hole = hole.repeat(count // len(hole), 1, 1, 1)
    # Encoded for every network, since an ancestral scheduler's noise is drawn after it.
    masked = encode_latents(vae, pixels * (canvas.hole < 0.5).to(device), count, generator).to(dtype)
    if native:
        return Start(latents=latents, beside=torch.cat([hole, masked], dim=1))
    return Start(latents=latents, rest=Rest(latents=clean, noise=noise, hole=hole))


def encode_latents(vae, pixels: torch.Tensor, count: int, generator) -> torch.Tensor:
    """Latents (count, C, h, w) of pictures, of unit variance; each image's are drawn by a generator of its own where
    there is a list of them.

    Raises:
        ValueError: `count` is no multiple of the pictures.
    """
    if count % len(pixels):
        raise ValueError(f"{len(pixels)} start pictures do not go into {count} images.")
    dtype = vae.dtype
    upcast = dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if upcast:
        vae.to(dtype=torch.float32)
    try:
        encoded = vae.encode
        if isinstance(generator, Sequence):
            pixels = pixels.repeat(count // len(pixels), 1, 1, 1).to(vae.dtype)
            rows = [retrieve_latents(encoded(row[None]), one) for row, one in zip(pixels, generator, strict=True)]
            latents = torch.cat(rows)
        else:
            latents = retrieve_latents(encoded(pixels.to(vae.dtype)), generator)
            latents = latents.repeat(count // len(latents), 1, 1, 1)
    finally:
        if upcast:
            vae.to(dtype=dtype)
    return _scaled(latents, vae.config)


def _scaled(latents: torch.Tensor, config) -> torch.Tensor:
    """The VAE's own statistics to unit variance."""
    if getattr(config, "latents_mean", None) is None or getattr(config, "latents_std", None) is None:
        return latents * config.scaling_factor
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1).to(latents) for values in (config.latents_mean, config.latents_std)
    )
    return (latents - mean) * config.scaling_factor / std

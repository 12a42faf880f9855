"""The ControlNets of a call, as the loop's passes take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.image_processor import VaeImageProcessor
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

from realcustom.models.control import Control, same_family
from realcustom.pipelines.canvas import Canvas, opened


def joined_nets(controlnet):
    """One ControlNet, or several given as a list, as one component; None stays."""
    return MultiControlNetModel(controlnet) if isinstance(controlnet, (list, tuple)) else controlnet


def control_of(call: Mapping[str, Any], controlnet, pipe, canvas: Canvas | None = None) -> Control | None:
    """The control of a call; None where it names no picture.

    Args:
        call: `control_image` (one picture, or one for each network), `controlnet_conditioning_scale`,
            `control_guidance_start` and `control_guidance_end` (numbers, or one for each network), height and width.
        controlnet: ControlNetModel, or diffusers' MultiControlNetModel.
        pipe: what it belongs to.
        canvas: the start picture; where only a part of it is drawn, that part of the control pictures is read.

    Raises:
        ValueError: there is no network, or pictures and numbers are not as many as networks.
    """
    if call["control_image"] is None:
        return None
    if controlnet is None:
        raise ValueError("A control_image needs a ControlNet: load the pipeline with controlnet=...")
    networks = list(getattr(controlnet, "nets", [controlnet]))
    if not all(same_family(network, pipe.unet) for network in networks):
        raise ValueError("The ControlNet is of another model family than the base model.")
    images = call["control_image"] if isinstance(call["control_image"], (list, tuple)) else [call["control_image"]]
    names = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
    scales, starts, ends = (_each(call[name], len(networks), name) for name in names)
    if len(images) != len(networks):
        raise ValueError(f"There are {len(networks)} ControlNets and {len(images)} control images: give one for each.")
    for start, end in zip(starts, ends, strict=True):
        if not 0 <= start < end <= 1:
            raise ValueError(f"A control acts from a start to a later end, shares from 0 to 1, not {start} to {end}.")
    pictures = VaeImageProcessor(vae_scale_factor=pipe.vae_scale_factor, do_convert_rgb=True, do_normalize=False)
    size = {"height": call["height"], "width": call["width"]}
    device, dtype = pipe._execution_device, pipe.unet.dtype
    crop = {} if canvas is None else canvas.crop
    images = [opened(image) for image in images]
    if crop:
        images = [image if image.size == canvas.size else image.resize(canvas.size) for image in images]
    return Control(
        networks=networks,
        pictures=[pictures.preprocess(image, **size, **crop).to(device, dtype) for image in images],
        scales=scales,
        spans=list(zip(starts, ends, strict=True)),
        pixels_per_cell=pipe.vae_scale_factor,
    )


def _each(value: Any, count: int, name: str) -> list[float]:
    values = list(value) if isinstance(value, Sequence) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name} holds {len(values)} numbers for {count} ControlNets: give one, or one for each.")
    return [float(one) for one in values]

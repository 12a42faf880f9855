"""What a request says about a picture to start from, a hole in it and controls, as the pipeline takes it, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image

from realcustom.pictures.content import Picture
from realcustom.pictures.holes import fitting_size, hole_mask, laid_into
from realcustom.pipelines.canvas import HOLE_STRENGTH, STRENGTH
from realcustom.pipelines.controls import joined_nets
from realcustom.types import REFERENCE, Request


def plain(request: Request) -> Request:
    """The request with PIL images in the place of opened pictures, but of its references: what a pipeline knows of
    those, it knows by their hash."""

    def image_of(picture: Any, kind: str, what: str) -> Any:
        return picture if kind == REFERENCE or not isinstance(picture, Picture) else picture.image

    return request.with_pictures(image_of)


def check_picture(pipeline, request: Request) -> None:
    """Refuse a picture or a control that this model cannot use.

    Raises:
        ValueError: one sentence says why.
    """
    if (request.image is not None or request.controls) and not getattr(pipeline, "starts_from_pictures", False):
        raise ValueError("This model draws from text and references alone: leave image, hole and controls out.")
    if request.hole is not None:
        inside = hole_mask(plain(request).hole, request.image.image.size)
        if inside.all():
            raise ValueError("The hole is the whole picture: leave image and hole out, or make it smaller.")


def start_defaults(pipeline, request: Request, grid: int) -> dict[str, Any]:
    """What a start picture puts in the place of the model's defaults: size and denoising.

    A picture is drawn in its own shape, at most as large as the model was trained at; only around a hole with padding
    the model's own size is drawn.
    """
    if request.image is None:
        return {}
    own: dict[str, Any] = {"denoising": STRENGTH if request.hole is None else HOLE_STRENGTH}
    if request.padding is None:
        height, width = pipeline.native_size
        own["width"], own["height"] = fitting_size(request.image.image.size, height * width, grid)
    return own


def own_arguments(request: Request) -> dict[str, Any]:
    """The pipeline's arguments for the pictures of a resolved request, and for how its prompts are read."""
    request = plain(request)
    options = {"long_prompts": request.long_prompt, "prompt_weights": request.prompt_weights}
    arguments: dict[str, Any] = {name: True for name, value in options.items() if value}
    if request.image is not None:
        arguments |= {"image": request.image, "strength": request.denoising}
    if request.hole is not None:
        arguments["mask_image"] = Image.fromarray(hole_mask(request.hole, request.image.size))
        arguments["padding_mask_crop"] = request.padding
    if request.controls:
        arguments["control_image"] = [control.image for control in request.controls]
        arguments["controlnet_conditioning_scale"] = [control.scale for control in request.controls]
        arguments["control_guidance_start"] = [control.start for control in request.controls]
        arguments["control_guidance_end"] = [control.end for control in request.controls]
    return arguments


def finished_picture(request: Request, image: Image.Image) -> Image.Image:
    """What the pipeline drew, laid into the picture that it started from where that has a hole."""
    if request.hole is None:
        return image
    request = plain(request)
    return laid_into(request.image, image, hole_mask(request.hole, request.image.size), request.feather)


@contextmanager
def controlled(pipeline, nets: Mapping[str, Any], request: Request) -> Iterator[None]:
    """The pipeline with the ControlNets that a request names, for a while.

    Raises:
        ValueError: there is no ControlNet of that name.
    """
    if not request.controls:
        yield
        return
    before = pipeline.controlnet
    pipeline.register_modules(controlnet=joined_nets([_net(nets, control.name) for control in request.controls]))
    try:
        yield
    finally:
        pipeline.register_modules(controlnet=before)


def _net(nets: Mapping[str, Any], name: str) -> Any:
    if not name and len(nets) == 1:
        return next(iter(nets.values()))
    if name not in nets:
        there = f"there are {', '.join(sorted(nets))}" if nets else "none was loaded; give one with controlnet"
        raise ValueError(f'There is no ControlNet "{name}" here: {there}.')
    return nets[name]

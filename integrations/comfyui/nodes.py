"""Five nodes: load a model, name subjects, start from a picture, put it under control, generate.

ComfyUI's types: IMAGE is float (B, H, W, 3) in [0, 1], MASK float (B, H, W) in [0, 1]. Nothing of ComfyUI is imported;
what it offers a running node (progress bar, interruption) is used where it is loaded.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import numpy as np
import torch

from realcustom import Engine, Request, Subject
from realcustom.engine.presets import DEFAULT, PRESETS
from realcustom.pictures.overlays import mask_image
from realcustom.pictures.png import portable
from realcustom.types import MAX_IMAGES, MAX_SEED, MAX_SIDE, MAX_STEPS, RANDOM_SEED, REFUSED, ControlImage, Progress

log = logging.getLogger("realcustom")

CATEGORY = "RealCustom"
OWN = "the model's own"


class RealCustomLoadModel:
    """A model with its adapter and encoders, kept as long as its inputs stay the same."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("REALCUSTOM_MODEL",)
    RETURN_NAMES = ("model",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict]:
        """The node's inputs."""
        return {
            "required": {
                "model": ("STRING", {"default": "miniature", "tooltip": "A bundled model, a folder or a hub id."}),
                "adapter": ("STRING", {"default": "", "tooltip": "Folder or hub id; empty if the model has its own."}),
                "device": (["auto", "cuda", "cpu", "mps"], {"default": "auto"}),
                "dtype": (["auto", "float32", "float16", "bfloat16"], {"default": "auto"}),
            },
            "optional": {
                "controlnet": (
                    "STRING",
                    {"default": "", "multiline": True, "tooltip": "ControlNets, one a line: outline=FOLDER or hub id."},
                ),
            },
        }

    def load(self, model: str, adapter: str, device: str, dtype: str, controlnet: str = "") -> tuple[Engine]:
        """Load it; ValueError with one sentence if it cannot be had."""
        options = {
            "adapter": adapter.strip() or None,
            "device": None if device == "auto" else device,
            "dtype": None if dtype == "auto" else dtype,
            "controlnet": tuple(line.strip() for line in controlnet.splitlines() if line.strip()),
        }
        return (Engine.load(model.strip(), **options),)


class RealCustomSubject:
    """A word of the prompt and what it looks like. Several of these in a row are several subjects."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("REALCUSTOM_SUBJECTS",)
    RETURN_NAMES = ("subjects",)
    FUNCTION = "add"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict]:
        """The node's inputs."""
        return {
            "required": {
                "word": ("STRING", {"default": "dog", "tooltip": "A word or phrase that stands in the prompt."}),
                "image": ("IMAGE", {"tooltip": "One image or a batch of images of the same subject."}),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0, "step": 0.05}),
            },
            "optional": {
                "region": ("MASK", {"tooltip": "Where the subject may stand; white is here."}),
                "weights": (
                    "STRING",
                    {"default": "", "tooltip": "What each image counts: 1, 0.5; empty is alike."},
                ),
                "subjects": ("REALCUSTOM_SUBJECTS", {"tooltip": "The subjects before this one."}),
            },
        }

    def add(
        self,
        word: str,
        image: torch.Tensor,
        strength: float,
        region: torch.Tensor | None = None,
        weights: str = "",
        subjects: dict[str, Subject] | None = None,
    ) -> tuple[dict[str, Subject]]:
        """The subjects so far and this one; ValueError if its word is taken."""
        word = word.strip()
        if word in (subjects or {}):
            raise ValueError(f'"{word}" is a subject already: connect a batch of images to give it several.')
        area = None if region is None else _array(region.reshape(-1, *region.shape[-2:])[0])
        pictures = tuple(_array(picture) for picture in image)
        try:
            shares = tuple(float(part) for part in weights.split(",")) if weights.strip() else None
        except ValueError:
            raise ValueError(f'The weights must be numbers with commas between, not "{weights}".') from None
        return ({**(subjects or {}), word: Subject(pictures, strength=float(strength), region=area, weights=shares)},)


class RealCustomPicture:
    """A picture to start from: drawn anew as a whole, or in a hole, around which every pixel stays."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("REALCUSTOM_PICTURE",)
    RETURN_NAMES = ("picture",)
    FUNCTION = "take"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict]:
        """The node's inputs."""
        share = {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.05}
        pixels = {"min": -1, "max": 1024}
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "One picture."}),
                "denoising": ("FLOAT", {**share, "tooltip": "Share of the steps; 0: 0.8, in a hole 1."}),
            },
            "optional": {
                "hole": ("MASK", {"tooltip": "Where it is drawn anew; white is here. None is everywhere."}),
                "feather": ("INT", {**pixels, "min": 0, "default": 0, "tooltip": "Pixels inside the hole's edge."}),
                "padding": (
                    "INT",
                    {**pixels, "default": -1, "tooltip": "Draw only the hole and so many pixels; -1: all."},
                ),
            },
        }

    def take(
        self,
        image: torch.Tensor,
        denoising: float,
        hole: torch.Tensor | None = None,
        feather: int = 0,
        padding: int = -1,
    ) -> tuple[dict[str, Any]]:
        """The request's fields; ValueError for a batch of pictures."""
        if len(image) != 1:
            raise ValueError(f"A run starts from one picture, not from a batch of {len(image)}.")
        fields: dict[str, Any] = {"image": _array(image[0]), "denoising": float(denoising) or None}
        if hole is not None:
            fields |= {"hole": _array(hole.reshape(-1, *hole.shape[-2:])[0]), "feather": feather}
            fields["padding"] = None if padding < 0 else padding
        return (fields,)


class RealCustomControl:
    """A picture for a ControlNet of the model. Several of these in a row act together."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("REALCUSTOM_CONTROLS",)
    RETURN_NAMES = ("controls",)
    FUNCTION = "add"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict]:
        """The node's inputs."""
        share = {"min": 0.0, "max": 1.0, "step": 0.05}
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "Outlines, depth, a pose: what the ControlNet reads."}),
                "name": ("STRING", {"default": "", "tooltip": "Of the ControlNet; empty if the model has one."}),
                "scale": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0, "step": 0.05}),
                "start": ("FLOAT", {**share, "default": 0.0}),
                "end": ("FLOAT", {**share, "default": 1.0}),
            },
            "optional": {"controls": ("REALCUSTOM_CONTROLS", {"tooltip": "The controls before this one."})},
        }

    def add(
        self,
        image: torch.Tensor,
        name: str,
        scale: float,
        start: float,
        end: float,
        controls: tuple[ControlImage, ...] = (),
    ) -> tuple[tuple[ControlImage, ...]]:
        """The controls so far and this one; ValueError if it ends before it starts."""
        control = ControlImage(_array(image[0]), name=name.strip(), scale=float(scale), start=start, end=end)
        return ((*controls, control),)


class RealCustomGenerate:
    """Images of a prompt with the subjects in the place of their words, and where the subjects were drawn."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE", "MASK", "STRING")
    RETURN_NAMES = ("images", "masks", "settings")
    FUNCTION = "generate"

    @classmethod
    def IS_CHANGED(cls, seed: int = 0, **_: Any) -> float | int:
        """What ComfyUI compares: a seed that is drawn makes other images every time, and NaN equals nothing."""
        return float("nan") if seed == RANDOM_SEED else seed

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict]:
        """The node's inputs; 0 (and -1 for the scales, where 0 has a meaning) is the model's own setting."""
        own = {"tooltip": f"0: {OWN}."}
        scale = {"default": -1.0, "min": -1.0, "max": 100.0, "step": 0.1}
        return {
            "required": {
                "model": ("REALCUSTOM_MODEL",),
                "prompt": ("STRING", {"default": "a dog on the beach", "multiline": True}),
                "seed": ("INT", {"default": 0, "min": RANDOM_SEED, "max": MAX_SEED, "tooltip": "-1: drawn anew."}),
                "num_images": ("INT", {"default": 1, "min": 1, "max": MAX_IMAGES}),
                "width": ("INT", {"default": 0, "min": 0, "max": MAX_SIDE, "step": 8, **own}),
                "height": ("INT", {"default": 0, "min": 0, "max": MAX_SIDE, "step": 8, **own}),
                "steps": ("INT", {"default": 0, "min": 0, "max": MAX_STEPS, **own}),
                "guidance_scale": ("FLOAT", {**scale, "tooltip": f"-1: {OWN}."}),
                "mask_scope": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01, **own}),
            },
            "optional": {
                "subjects": ("REALCUSTOM_SUBJECTS", {"tooltip": "None is plain text-to-image."}),
                "negative_prompt": ("STRING", {"default": "", "multiline": True}),
                "image_guidance_scale": (
                    "FLOAT",
                    {**scale, "tooltip": "-1: one scale for both; the model's own where both are -1."},
                ),
                "mask_word": ("STRING", {"default": "", "tooltip": "Whose mask; empty is all subjects together."}),
                "picture": ("REALCUSTOM_PICTURE", {"tooltip": "None starts from noise."}),
                "controls": ("REALCUSTOM_CONTROLS", {"tooltip": "Pictures for the model's ControlNets."}),
                "preset": (list(PRESETS), {"default": DEFAULT, "tooltip": "Faster ones change what was left open."}),
                "long_prompt": ("BOOLEAN", {"default": False, "tooltip": "Read longer prompts, in chunks."}),
                "prompt_weights": ("BOOLEAN", {"default": False, "tooltip": "(word:1.3) and [word] weigh words."}),
            },
        }

    def generate(
        self,
        model: Engine,
        prompt: str,
        mask_word: str = "",
        **settings: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, str]:
        """images (B, H, W, 3), masks (B, H, W) of the last step, and what made each image, as JSON (a list of records);
        ValueError with one sentence on bad input."""
        request = _request(prompt, settings)
        word = mask_word.strip()
        if word and word not in request.subjects:
            raise ValueError(f'There is no subject "{word}", whose mask is asked for.')
        result = model.run(request, progress=_progress_bar())
        images = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in result.images])
        masks = [_mask(result, index, word) for index in range(len(result.images))]
        for index in np.flatnonzero(result.flagged):
            log.warning("Image %d %s", index, REFUSED)
        settings = json.dumps([portable(entry) for entry in result.metadata])
        return torch.from_numpy(images), torch.from_numpy(np.stack(masks)), settings


def _request(prompt: str, settings: dict[str, Any]) -> Request:
    """ComfyUI's numbers as a request: what stands for the model's own becomes None."""
    none_at = {"width": 0, "height": 0, "steps": 0, "mask_scope": 0, "guidance_scale": -1, "image_guidance_scale": -1}
    fields = {name: None if name in none_at and value == none_at[name] else value for name, value in settings.items()}
    negative = (fields.pop("negative_prompt", None) or "").strip()
    subjects = fields.pop("subjects", None) or {}
    fields |= fields.pop("picture", None) or {}
    return Request(prompt=prompt, subjects=subjects, negative_prompt=negative or None, **fields)


def _mask(result, index: int, word: str) -> np.ndarray:
    """The mask (H, W) of one image at its size: of one subject, or of all of them together."""
    image = result.images[index]
    words = [word] if word else list(result.masks)
    if not words:
        return np.zeros((image.height, image.width), dtype=np.float32)
    largest = np.max([result.masks[one][-1, index] for one in words], axis=0)
    return np.asarray(mask_image(largest, image.size), dtype=np.float32) / 255


def _array(tensor: torch.Tensor) -> np.ndarray:
    """An IMAGE or MASK tensor without its batch as an array in [0, 1]; ComfyUI's nodes may leave that range."""
    return tensor.detach().float().clamp(0.0, 1.0).cpu().numpy()


def _progress_bar():
    """A step callback for ComfyUI's bar and its cancel button; one that does nothing outside ComfyUI."""
    utils, management = sys.modules.get("comfy.utils"), sys.modules.get("comfy.model_management")
    bar = None

    def told(now: Progress) -> None:
        nonlocal bar
        if management is not None:
            management.throw_exception_if_processing_interrupted()
        if utils is not None:
            bar = bar or utils.ProgressBar(now.steps)
            bar.update_absolute(now.step, now.steps)

    return told


NODE_CLASS_MAPPINGS = {
    "RealCustomLoadModel": RealCustomLoadModel,
    "RealCustomSubject": RealCustomSubject,
    "RealCustomPicture": RealCustomPicture,
    "RealCustomControl": RealCustomControl,
    "RealCustomGenerate": RealCustomGenerate,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "RealCustomLoadModel": "RealCustom: load model",
    "RealCustomSubject": "RealCustom: subject",
    "RealCustomPicture": "RealCustom: picture",
    "RealCustomControl": "RealCustom: control",
    "RealCustomGenerate": "RealCustom: generate",
}

"""The one room behind every door: a model loaded once, and `request -> result`."""

from __future__ import annotations

import inspect
import math
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from realcustom.bundled import locate
from realcustom.encoders.target_word import agreed_positions, check_disjoint
from realcustom.loading import load_pipeline
from realcustom.references import Reference, open_request, request_record
from realcustom.types import Progress, Request, Result, Subject

MAX_AREA_RATIO = 16  # of the size a model was trained at; beyond it there is no picture, only memory use


class Cancelled(Exception):
    """A run was stopped between two steps because its caller asked for it."""


class Engine:
    """A loaded model that answers requests, one at a time.

    Attributes:
        pipeline: a RealCustomPipeline or RealCustomXLPipeline.
        source: {"model": name, folder or hub id, "adapter": folder or hub id or None}, as recorded in every image.
        batch_size: how many images of a request are made at once. It changes memory and speed; an image differs by
            rounding at most, and not at all with 1, the default on a CPU, where larger batches are hardly faster.
    """

    def __init__(self, pipeline, source: Mapping[str, Any] | None = None, batch_size: int | None = None):
        self.pipeline = pipeline
        self.source = dict(source or {"model": None, "adapter": None})
        self.batch_size = batch_size or (1 if pipeline.device.type == "cpu" else 4)
        self._lock = threading.Lock()
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def load(
        cls,
        model: str = "miniature",
        *,
        adapter: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | None = None,
    ) -> Engine:
        """Load a model by name, folder or hub id; arguments and errors as `realcustom.loading.load_pipeline`."""
        pipeline = load_pipeline(model, adapter=adapter, device=device, dtype=dtype)
        return cls(pipeline, {"model": locate(model), "adapter": adapter and locate(adapter)}, batch_size)

    @property
    def grid(self) -> int:
        """Height and width must be multiples of this many pixels."""
        return math.lcm(8, self.pipeline.vae_scale_factor)

    def describe(self) -> dict[str, Any]:
        """The model's own size (width x height), size grid and defaults, JSON-ready."""
        own = _defaults(self.pipeline)
        adapter = getattr(self.pipeline, "adapter", None)
        return {
            "size": f"{own['width']}x{own['height']}",
            "size_grid": self.grid,
            "steps": own["steps"],
            "guidance_scale": own["guidance_scale"],
            "mask_scope": own["mask_scope"],
            "adapter_layers": 0 if adapter is None else len(adapter.config.layers),
        }

    def resolve(self, request: Request) -> Request:
        """The request with its pictures opened and the model's defaults filled in.

        Raises:
            ValueError: the model cannot do what is asked for; one sentence says why.
        """
        request = open_request(request)
        request = _with_defaults(request, _defaults(self.pipeline))
        self._check_size(request)
        self._check_prompt(request)
        self.pipeline.check_ready(request.subjects, request.guidance_scale, request.image_guidance_scale)
        return request

    def run(
        self,
        request: Request,
        progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """Make the images of a request.

        Args:
            request: what to make.
            progress: called after every denoising step, in the calling thread.
            cancelled: asked after every step; the run ends with `Cancelled` once it says True.

        Raises:
            ValueError: see `resolve`.
            Cancelled: `cancelled` said True; nothing is kept.
        """
        request = self.resolve(request)
        images: list = []
        masks: dict[str, list[np.ndarray]] = {word: [] for word in request.subjects}
        for seeds in _batches(request, self.batch_size):
            watch = _Watch(request, len(images), len(seeds), progress, cancelled)
            with self._lock:
                output = self.pipeline(
                    **_call(request, seeds),
                    mask=replace(self.pipeline.default_mask, scope=request.mask_scope),
                    callback_on_step_end=watch,
                    callback_on_step_end_tensor_inputs=["latents", "masks"],
                )
            images += output.images
            for word, steps in (output.masks or {}).items():
                masks[word].append(np.asarray(steps.detach().float().cpu()))
        return Result(
            images=tuple(images),
            masks={word: np.concatenate(parts, axis=1) for word, parts in masks.items() if parts},
            metadata=tuple(self._metadata(request.image_request(index)) for index in range(len(images))),
            request=request,
        )

    def preview(self, latents: torch.Tensor) -> list:
        """PIL images of latents (b, c, h, w) under way: early steps are noise, later ones nearly the result."""
        from realcustom.pipelines.output import decode_latents

        with self._lock, torch.no_grad():
            decoded = decode_latents(self.pipeline.vae, latents)
        return self.pipeline.image_processor.postprocess(decoded, output_type="pil")

    def _check_size(self, request: Request) -> None:
        for name, side in (("height", request.height), ("width", request.width)):
            if side % self.grid:
                near = max(self.grid, round(side / self.grid) * self.grid)
                raise ValueError(
                    f"The {name} must be a multiple of {self.grid} for this model, not {side}; {near} would do."
                )
        height, width = _native_size(self.pipeline)
        if request.height * request.width > MAX_AREA_RATIO * height * width:
            raise ValueError(
                f"{request.width}x{request.height} is too large for this model, which was made for {width}x{height}; "
                f"at most {MAX_AREA_RATIO} times that area is possible."
            )

    def _check_prompt(self, request: Request) -> None:
        tokenizers = [self.pipeline.tokenizer, getattr(self.pipeline, "tokenizer_2", None)]
        tokenizers = [tokenizer for tokenizer in tokenizers if tokenizer is not None]
        prompts = [self.pipeline.texts_for(request.prompt, tokenizer)[0] for tokenizer in tokenizers]
        if request.negative_prompt is not None:
            for tokenizer in tokenizers:
                self.pipeline.texts_for(request.negative_prompt, tokenizer)
        positions = {word: agreed_positions(tokenizers, prompts, word) for word in request.subjects}
        check_disjoint(positions, request.prompt)

    def _metadata(self, request: Request) -> dict[str, Any]:
        packages = ("torch", "diffusers", "transformers")
        return {
            "request": request_record(request),
            "model": self.source,
            "device": str(self.pipeline.device),
            "dtype": str(self.pipeline.dtype).removeprefix("torch."),
            "versions": {
                "realcustom": version("realcustom"),
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
            },
        }


class _Watch:
    """The pipeline's step callback: reports progress and stops a cancelled run."""

    def __init__(self, request: Request, done: int, batch: int, progress: Callable | None, cancelled: Callable | None):
        self.request, self.done, self.batch = request, done, batch
        self.progress, self.cancelled = progress, cancelled

    def __call__(self, pipeline, step: int, timestep, tensors: dict) -> dict:
        if self.progress is not None:
            # Steps count image by image, so that the batch size does not show.
            each = self.request.steps
            self.progress(
                Progress(
                    step=self.done * each + (step + 1) * self.batch,
                    steps=self.request.num_images * each,
                    image=self.done,
                    images=self.request.num_images,
                    latents=tensors.get("latents"),
                    masks=self._named(tensors.get("masks")),
                )
            )
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("The run was cancelled.")
        return {}

    def _named(self, masks) -> dict[str, Any] | None:
        if masks is None:
            return None
        return {word: masks[:, index] for index, word in enumerate(self.request.subjects)}


def _batches(request: Request, size: int) -> Iterator[list[int]]:
    """The seeds of each batch: image i has seed + i."""
    seeds = [request.image_seed(index) for index in range(request.num_images)]
    for start in range(0, len(seeds), size):
        yield seeds[start : start + size]


def _call(request: Request, seeds: list[int]) -> dict[str, Any]:
    """A resolved request as the pipeline's arguments. Each image has a generator of its own, on the CPU, so that
    neither batch nor device changes its noise."""
    return {
        "prompt": request.prompt,
        "subjects": {word: _plain(subject) for word, subject in request.subjects.items()},
        "negative_prompt": request.negative_prompt,
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "image_guidance_scale": request.image_guidance_scale,
        "num_images_per_prompt": len(seeds),
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        "output_type": "pil",
    }


def _plain(subject: Subject) -> Subject:
    """The subject as the pipeline takes it: PIL images instead of opened references."""
    region = subject.region.image if isinstance(subject.region, Reference) else subject.region
    return replace(subject, images=tuple(reference.image for reference in subject.images), region=region)


def _native_size(pipeline) -> tuple[int, int]:
    """Height and width in pixels that the model was trained at."""
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def _defaults(pipeline) -> dict[str, Any]:
    """What a request may leave to the model."""
    height, width = _native_size(pipeline)
    call = inspect.signature(pipeline.__call__).parameters
    return {
        "height": height,
        "width": width,
        "steps": call["num_inference_steps"].default,
        "guidance_scale": call["guidance_scale"].default,
        "mask_scope": pipeline.default_mask.scope,
    }


def _with_defaults(request: Request, own: Mapping[str, Any]) -> Request:
    return replace(request, **{name: value for name, value in own.items() if getattr(request, name) is None})

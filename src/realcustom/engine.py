"""The one room behind every door: a model loaded once, and `request -> result`."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from realcustom.encoders.target_word import agreed_positions, check_disjoint, check_prompt_length, find_phrase
from realcustom.guidance.mask import MaskSettings
from realcustom.loading import load_pipeline
from realcustom.references import Reference, open_references, request_record
from realcustom.types import Progress, Request, Result, Subject

MAX_AREA_RATIO = 16  # of the size a model was trained at; beyond it there is no picture, only memory use


class Cancelled(Exception):
    """A run was stopped between two steps because its caller asked for it."""


class Engine:
    """A loaded model that answers requests, one at a time.

    Attributes:
        pipeline: a RealCustomPipeline or RealCustomXLPipeline.
        source: {"model": name, folder or hub id, "adapter": folder or hub id or None}, as recorded in every image.
        batch_size: how many images of a request are made at once; it changes memory and speed, not the images.
    """

    def __init__(self, pipeline, source: Mapping[str, Any] | None = None, batch_size: int = 4):
        self.pipeline = pipeline
        self.source = dict(source or {"model": None, "adapter": None})
        self.batch_size = batch_size
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
        batch_size: int = 4,
    ) -> Engine:
        """Load a model by name, folder or hub id; arguments and errors as `realcustom.loading.load_pipeline`."""
        pipeline = load_pipeline(model, adapter=adapter, device=device, dtype=dtype)
        return cls(pipeline, {"model": model, "adapter": adapter}, batch_size)

    @property
    def grid(self) -> int:
        """Height and width must be multiples of this many pixels."""
        return self.pipeline.vae_scale_factor

    def resolve(self, request: Request) -> Request:
        """The request with its pictures opened and the model's defaults filled in.

        Raises:
            ValueError: the model cannot do what is asked for; one sentence says why.
        """
        check_words(request)
        request = open_references(request)
        request = replace(request, **_defaults(self.pipeline, request))
        self._check_size(request)
        self._check_prompt(request)
        if request.subjects and getattr(self.pipeline, "adapter", None) is None:
            raise ValueError("This model has no adapter, so it cannot use a reference: name one, or give no subject.")
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
                output = self.pipeline(**_call(request, seeds), callback_on_step_end=watch)
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
        own = _native_side(self.pipeline)
        if request.height * request.width > MAX_AREA_RATIO * own * own:
            raise ValueError(
                f"{request.width}x{request.height} is too large for this model, which was made for {own}x{own}; "
                f"at most {MAX_AREA_RATIO} times that area is possible."
            )

    def _check_prompt(self, request: Request) -> None:
        tokenizers = [self.pipeline.tokenizer, getattr(self.pipeline, "tokenizer_2", None)]
        tokenizers = [tokenizer for tokenizer in tokenizers if tokenizer is not None]
        convert = getattr(self.pipeline, "maybe_convert_prompt", lambda prompt, tokenizer: prompt)
        for text in (request.prompt, request.negative_prompt or ""):
            for tokenizer in tokenizers:
                check_prompt_length(tokenizer, convert(text, tokenizer))
        prompts = [convert(request.prompt, tokenizer) for tokenizer in tokenizers]
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


def check_words(request: Request) -> None:
    """Refuse a request whose subjects' words do not stand in its prompt; needs no model.

    Raises:
        ValueError: names the word and the prompt's words.
    """
    for word in request.subjects:
        if not find_phrase(request.prompt, word):
            words = ", ".join(dict.fromkeys(request.prompt.replace(",", " ").split()))
            raise ValueError(f'"{word}" does not stand in the prompt "{request.prompt}"; its words are: {words}.')


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
                    masks=tensors.get("masks"),
                )
            )
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("The run was cancelled.")
        return {}


def _batches(request: Request, size: int) -> Iterator[list[int]]:
    """The seeds of each batch: image i has seed + i."""
    seeds = range(request.seed, request.seed + request.num_images)
    for start in range(0, len(seeds), size):
        yield list(seeds[start : start + size])


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
        "mask": MaskSettings(scope=request.mask_scope),
        "output_type": "pil",
    }


def _plain(subject: Subject) -> Subject:
    """The subject as the pipeline takes it: PIL images instead of opened references."""
    region = subject.region.image if isinstance(subject.region, Reference) else subject.region
    return replace(subject, images=tuple(reference.image for reference in subject.images), region=region)


def _native_side(pipeline) -> int:
    return int(pipeline.unet.config.sample_size) * pipeline.vae_scale_factor


def _defaults(pipeline, request: Request) -> dict[str, Any]:
    """What the request leaves to the model."""
    side = _native_side(pipeline)
    model = {"height": side, "width": side, "steps": 25, "guidance_scale": 3.5, "mask_scope": MaskSettings().scope}
    return {name: value for name, value in model.items() if getattr(request, name) is None}

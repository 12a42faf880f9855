"""The one room behind every door: a model loaded once, and `request -> result`."""

from __future__ import annotations

import copy
import math
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from realcustom.encoders.target_word import agreed_positions, check_disjoint
from realcustom.engine.grouping import Making, Units, Watch, batches
from realcustom.engine.knowledge import Knowledge, read_knowledge, warnings_of
from realcustom.engine.loading import computing_device, find_sources, load_controls, load_sources
from realcustom.engine.options import LoadOptions
from realcustom.engine.picturing import (
    check_picture,
    controlled,
    finished_picture,
    own_arguments,
    plain,
    start_defaults,
)
from realcustom.engine.presets import preset_named
from realcustom.engine.requests import open_request, request_record, style_of_request
from realcustom.pipelines.sources import Sources
from realcustom.types import Cancelled, Progress, Request, Result

MAX_AREA_RATIO = 16  # of the size a model was trained at; beyond it there is no picture, only memory use


class Engine:
    """A loaded model that answers requests, from any thread.

    Attributes:
        pipeline: a RealCustomPipeline or RealCustomXLPipeline.
        source: {"model": name, folder or hub id, "adapter": folder or hub id or None}, as recorded in every image.
        controls: ControlNets by name, for requests with control pictures.
        knowledge: what the model knows, where it knows a closed world only.
        batch_size: how many images are made at once. It changes memory and speed; an image differs by rounding at
            most, and not at all with 1, the default on a CPU, where larger batches are hardly faster.
    """

    def __init__(
        self,
        pipeline,
        source: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        controls: Mapping[str, Any] | None = None,
        knowledge: Knowledge | None = None,
    ):
        self.pipeline = pipeline
        self.source = dict(source or {"model": None, "adapter": None})
        self.controls = {} if controls is None else dict(controls)
        self.knowledge = {} if knowledge is None else dict(knowledge)
        self.batch_size = batch_size or (1 if computing_device(pipeline).type == "cpu" else 4)
        # Reentrant: a preview is decoded from within the run that it shows.
        self._lock = threading.RLock()
        self._tokenizers: list[Any] = []
        self._added: list[dict[str, int]] = []
        self._tokenizing = threading.Lock()
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def load(cls, model: str = "miniature", *, batch_size: int | None = None, **options: Any) -> Engine:
        """Load a model by name, folder or hub id; `options` are those of `realcustom.engine.options.LoadOptions`.

        With `compiled` the transformer blocks go through `torch.compile`: the first image of each size and batch takes
        a minute or more, the others less time than without.

        Raises:
            ValueError: see `realcustom.engine.loading.load_pipeline`.
        """
        return cls.from_options(LoadOptions(model=model, **options), batch_size)

    @classmethod
    def from_options(cls, options: LoadOptions, batch_size: int | None = None) -> Engine:
        """Load a model as its options say; errors as `load`."""
        return cls.from_sources(find_sources(options), options, batch_size)

    @classmethod
    def from_sources(cls, sources: Sources, options: LoadOptions, batch_size: int | None = None) -> Engine:
        """Load a model whose files are found; its images record exactly this revision."""
        source = options.record()
        if sources.revision is not None:
            source["revision"] = sources.revision
        pipeline = load_sources(sources, options)
        return cls(pipeline, source, batch_size, load_controls(options, pipeline), read_knowledge(sources.base))

    @property
    def grid(self) -> int:
        """Height and width must be multiples of this many pixels."""
        return getattr(self.pipeline, "size_grid", math.lcm(8, self.pipeline.vae_scale_factor))

    def describe(self) -> dict[str, Any]:
        """The model's own size (width x height), size grid and defaults, JSON-ready."""
        own = _defaults(self.pipeline)
        adapter = getattr(self.pipeline, "adapter", None)
        return {
            "size": f"{own['width']}x{own['height']}",
            "size_grid": self.grid,
            "steps": own["steps"],
            "guidance_scale": own["guidance_scale"],
            "image_guidance_scale": own["image_guidance_scale"],
            "mask_scope": own["mask_scope"],
            "adapter_layers": 0 if adapter is None else len(adapter.config.layers),
            **({"knows": self.knowledge} if self.knowledge else {}),
        }

    def warnings(self, prompt: str) -> tuple[str, ...]:
        """What should be known about a prompt that can be drawn nevertheless: words that the model does not know."""
        return warnings_of(prompt, self.knowledge)

    def resolve(self, request: Request) -> Request:
        """The request with its pictures opened and the model's defaults filled in.

        Raises:
            ValueError: the model cannot do what is asked for; one sentence says why.
        """
        request = open_request(request)
        check_picture(self.pipeline, request)
        own = _defaults(self.pipeline) | start_defaults(self.pipeline, request, self.grid)
        own["steps"] = preset_named(request.preset).steps or own["steps"]
        scales = self.pipeline.guidance_scales(request.guidance_scale, request.image_guidance_scale)
        own["guidance_scale"], own["image_guidance_scale"] = scales if request.subjects else (scales[0], None)
        own["negative_prompt"] = self.pipeline.call_defaults.negative_prompt if request.subjects else None
        request = _with_defaults(request, own)
        if request.steps_run < 1:
            raise ValueError(
                f"Of {request.steps} steps a denoising of {request.denoising:g} leaves none: raise one of them."
            )
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

        def told(_: int, now: Progress) -> None:
            progress(now)

        (result,) = self.run_many([request], progress and told, cancelled and (lambda _: cancelled()))
        if isinstance(result, Cancelled):
            raise result
        return result

    def run_many(
        self,
        requests: Sequence[Request],
        progress: Callable[[int, Progress], None] | None = None,
        cancelled: Callable[[int], bool] | None = None,
    ) -> list[Result | Cancelled]:
        """Make the images of several requests, as many together as `batch_size` and their settings allow.

        An image is the same as if its request ran alone (see `batch_size`).

        Args:
            requests: what to make.
            progress: called with a request's index and how far it is, after every step, in the calling thread.
            cancelled: asked with a request's index after every step; a run ends once all of its requests are.

        Returns:
            for every request its result, or `Cancelled`.

        Raises:
            ValueError: see `resolve`; nothing is made then.
        """
        requests = [self.resolve(request) for request in requests]
        making = [Making(request) for request in requests]
        stopped: set[int] = set()
        for units in batches(requests, self.batch_size, self.together):
            units = [unit for unit in units if unit[0] not in stopped]
            if units:
                self._run_batch(units, making, stopped, progress, cancelled)
        return [
            Cancelled("The run was cancelled.") if index in stopped else entry.result(self.settings)
            for index, entry in enumerate(making)
        ]

    def together(self, request: Request) -> tuple:
        """What requests must have in common to be made in one batch, hashable."""
        own = (request.height, request.width, request.steps, request.guidance_scale, request.image_guidance_scale)
        # SDXL reads no negative prompt as zeros, which is not how it reads an empty one.
        key = (*own, request.preset, request.mask_scope, len(request.subjects), request.negative_prompt is None)
        key = (*key, request.long_prompt, request.prompt_weights)
        scoring = getattr(getattr(self.pipeline, "adapter", None), "scoring", None) is not None
        # A scoring module reads the latents of its own batch, and a transformer's references are parts of one sequence,
        # so their requests run by themselves.
        alone = scoring or getattr(self.pipeline, "subjects_share_sequence", False)
        # A start picture and a control belong to all images of a batch.
        pictured = request.image is not None or request.controls
        return (*key, id(request)) if (alone and request.subjects) or pictured else key

    def _run_batch(self, units: Units, making: list[Making], stopped: set[int], progress, cancelled) -> None:
        watch = Watch(units, making, stopped, progress, cancelled)
        first = making[units[0][0]].request
        preset = preset_named(first.preset)
        settings = replace(self.pipeline.default_mask, scope=first.mask_scope)
        try:
            with self._lock, preset.scheduled(self.pipeline), controlled(self.pipeline, self.controls, first):
                output = self.pipeline(
                    **_call([(making[index].request, seed) for index, seed in units]),
                    **own_arguments(first),
                    mask=preset.mask(settings, first.steps_run),
                    guidance_interval=preset.guidance_interval,
                    callback_on_step_end=watch,
                    callback_on_step_end_tensor_inputs=["latents", "masks"],
                )
        except Cancelled:
            return
        for row, (index, _) in enumerate(units):
            flags = output.nsfw_content_detected
            image = finished_picture(making[index].request, output.images[row])
            making[index].add(image, _masks_of(output.masks, row), flags is not None and flags[row])

    def preview(self, latents: torch.Tensor) -> list:
        """PIL images of latents (b, c, h, w) under way: early steps are noise, later ones nearly the result.

        What a safety checker refuses is black here, too.
        """
        with self._lock:
            return self.pipeline.pictures(latents)[0]

    def settings(self, request: Request) -> dict[str, Any]:
        """What is stored with the image of a resolved request for one image, JSON-ready: enough to make it again."""
        packages = ("torch", "diffusers", "transformers")
        warnings = list(self.warnings(request.prompt))
        return {
            "request": request_record(request),
            "model": self.source,
            "device": str(computing_device(self.pipeline)),
            "dtype": str(self.pipeline.dtype).removeprefix("torch."),
            **({"warnings": warnings} if warnings else {}),
            "versions": {
                "realcustom": version("realcustom"),
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
            },
        }

    def _check_size(self, request: Request) -> None:
        for name, side in (("height", request.height), ("width", request.width)):
            if side % self.grid:
                near = max(self.grid, round(side / self.grid) * self.grid)
                raise ValueError(
                    f"The {name} must be a multiple of {self.grid} for this model, not {side}; {near} would do."
                )
        height, width = self.pipeline.native_size
        if request.height * request.width > MAX_AREA_RATIO * height * width:
            raise ValueError(
                f"{request.width}x{request.height} is too large for this model, which was made for {width}x{height}; "
                f"at most {MAX_AREA_RATIO} times that area is possible."
            )

    def _check_prompt(self, request: Request) -> None:
        style = style_of_request(request)
        if not (style.plain or getattr(self.pipeline, "starts_from_pictures", False)):
            raise ValueError("This model reads prompts in one way only: leave long_prompt and prompt_weights out.")
        more = {} if style.plain else {"style": style}
        with self._tokenizing:
            tokenizers = self._own_tokenizers()
            prompts = [self.pipeline.texts_for(request.prompt, tokenizer, **more)[0] for tokenizer in tokenizers]
            if request.negative_prompt is not None:
                if not getattr(self.pipeline, "reads_negative", True):
                    raise ValueError("This model reads no negative prompt: its guidance is part of the network.")
                for tokenizer in tokenizers:
                    self.pipeline.texts_for(request.negative_prompt, tokenizer, "negative prompt", **more)
            positions = {word: agreed_positions(tokenizers, prompts, word, style.long) for word in request.subjects}
        check_disjoint(positions, request.prompt)

    def _own_tokenizers(self) -> list[Any]:
        """Copies of the pipeline's tokenizers, because one that is in use by a run cannot be asked by another thread;
        made anew whenever textual inversions were loaded or removed."""
        tokenizers = self.pipeline.tokenizers
        added = [tokenizer.get_added_vocab() for tokenizer in tokenizers]
        if added != self._added or not self._tokenizers:
            self._tokenizers, self._added = copy.deepcopy(tokenizers), added
        return self._tokenizers


def _masks_of(masks: Any, row: int) -> dict[str, np.ndarray]:
    """The masks (steps, 1, h, w) by word of one image of a batch."""
    own = masks[row] if isinstance(masks, list) else {word: maps[:, row : row + 1] for word, maps in masks.items()}
    return {word: np.asarray(maps.detach().float().cpu()) for word, maps in (own or {}).items()}


def _call(rows: list[tuple[Request, int]]) -> dict[str, Any]:
    """Resolved requests, each with the seed of one image, as the pipeline's arguments. Each image has a generator of
    its own, on the CPU, so that neither batch nor device changes its noise."""
    first = rows[0][0]
    alone = all(request is first for request, _ in rows)
    subjects = [plain(request).subjects for request, _ in rows]
    negatives = [request.negative_prompt for request, _ in rows]
    return {
        "prompt": first.prompt if alone else [request.prompt for request, _ in rows],
        "subjects": subjects[0] if alone or not first.subjects else subjects,
        "negative_prompt": negatives[0] if alone or negatives[0] is None else negatives,
        "height": first.height,
        "width": first.width,
        "num_inference_steps": first.steps,
        "guidance_scale": first.guidance_scale,
        "image_guidance_scale": first.image_guidance_scale,
        "num_images_per_prompt": len(rows) if alone else 1,
        "generator": [torch.Generator("cpu").manual_seed(seed) for _, seed in rows],
        "output_type": "pil",
    }


def _defaults(pipeline) -> dict[str, Any]:
    """What a request may leave to the model."""
    height, width = pipeline.native_size
    settings = pipeline.call_defaults
    guidance_scale, image_guidance_scale = pipeline.guidance_scales(None, None)
    return {
        "height": settings.height or height,
        "width": settings.width or width,
        "steps": pipeline.default_steps,
        "guidance_scale": guidance_scale,
        "image_guidance_scale": image_guidance_scale,
        "mask_scope": pipeline.default_mask.scope,
    }


def _with_defaults(request: Request, own: Mapping[str, Any]) -> Request:
    return replace(request, **{name: value for name, value in own.items() if getattr(request, name) is None})

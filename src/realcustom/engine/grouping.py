"""Several requests in one batch: who goes with whom, what is told to whom, and whose result an image belongs to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from realcustom.types import Cancelled, Progress, Request, Result

Units = list[tuple[int, int]]  # (index of the request, seed of the image)


def batches(requests: Sequence[Request], size: int, together: Callable[[Request], Hashable]) -> Iterator[Units]:
    """All images of all requests in batches of at most `size`, each of requests with the same `together`.

    A request's images come in their order: image i has seed + i.
    """
    groups: dict[Hashable, Units] = {}
    for index, request in enumerate(requests):
        units = groups.setdefault(together(request), [])
        units += [(index, request.image_seed(image)) for image in range(request.num_images)]
    for units in groups.values():
        for start in range(0, len(units), size):
            yield units[start : start + size]


class Making:
    """The images of one request as far as they are made."""

    def __init__(self, request: Request):
        self.request = request
        self.images: list[Any] = []
        self.masks: dict[str, list[np.ndarray]] = {word: [] for word in request.subjects}
        self.flagged: list[bool] = []

    def add(self, image: Any, masks: dict[str, np.ndarray], flagged: bool = False) -> None:
        """The next image, its masks (steps, 1, h, w), and whether the model's safety checker made it black."""
        self.images.append(image)
        self.flagged.append(bool(flagged))
        for word, steps in masks.items():
            self.masks[word].append(steps)

    def result(self, metadata: Callable[[Request], dict[str, Any]]) -> Result:
        """All of it; `metadata` describes the request of a single image."""
        return Result(
            images=tuple(self.images),
            masks={word: np.concatenate(parts, axis=1) for word, parts in self.masks.items() if parts},
            metadata=tuple(
                metadata(self.request.image_request(index)) | ({"flagged": True} if flag else {})
                for index, flag in enumerate(self.flagged)
            ),
            request=self.request,
            flagged=tuple(self.flagged),
        )


class Watch:
    """The pipeline's step callback of one batch: reports progress and stops a run that nobody wants any more."""

    def __init__(
        self,
        units: Units,
        making: Sequence[Making],
        stopped: set[int],
        progress: Callable[[int, Progress], None] | None,
        cancelled: Callable[[int], bool] | None,
    ):
        self.rows: dict[int, list[int]] = {}
        for row, (index, _) in enumerate(units):
            self.rows.setdefault(index, []).append(row)
        self.making, self.stopped = making, stopped
        self.progress, self.cancelled = progress, cancelled

    def __call__(self, pipeline, step: int, timestep, tensors: dict) -> dict:
        for index, rows in self.rows.items():
            if self.progress is not None and index not in self.stopped:
                self.progress(index, self._progress(index, rows, self._steps_done(pipeline, index, step), tensors))
            if self.cancelled is not None and index not in self.stopped and self.cancelled(index):
                self.stopped.add(index)
        if self.stopped.issuperset(self.rows):
            raise Cancelled("The run was cancelled.")
        return {}

    def _steps_done(self, pipeline, index: int, evaluation: int) -> int:
        """Denoising steps made; some schedulers evaluate the network more often."""
        from realcustom.pipelines.denoise import scheduler_step

        order = getattr(pipeline.scheduler, "order", 1)
        return scheduler_step(evaluation, pipeline.num_timesteps, self.making[index].request.steps_run, order) + 1

    def _progress(self, index: int, rows: list[int], steps: int, tensors: dict) -> Progress:
        making = self.making[index]
        request, done = making.request, len(making.images)
        latents, masks = tensors.get("latents"), tensors.get("masks")
        if masks is not None:
            masks = {word: masks[rows, number] for number, word in enumerate(request.subjects)}
        return Progress(
            # Steps count image by image, so that the batch size does not show.
            step=done * request.steps_run + steps * len(rows),
            steps=request.num_images * request.steps_run,
            image=done,
            images=request.num_images,
            latents=None if latents is None else latents[rows],
            masks=masks,
        )

"""Making a benchmark's images, one file at a time, so that a run killed anywhere goes on where it was.

A task is done when its JSON file stands beside its picture. Each image has its own noise and its own pass through the
model, so neither the order nor an interruption changes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from realcustom.engine.presets import DEFAULT, preset_named
from realcustom.guidance.mask import MaskSettings
from realcustom.pictures.holes import hole_mask, laid_into
from realcustom.pictures.overlays import mask_image
from realcustom.pictures.png import write_png, write_whole
from realcustom.types import Subject

from .benchmark import Task, fingerprint, opened


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How images are made; None leaves a value to the pipeline.

    Attributes:
        steps: denoising steps, for a preset that leaves them open.
        preset: a name in `realcustom.engine.presets`: its steps, mask updates, guidance interval and scheduler.
        guidance_scale: w, or w_t where image_guidance_scale (w_i of RealCustom Eq. 13) is given; the adapter's own
            where neither is.
        mask: settings of the guidance mask.
        keep_share: gamma_num, for adapters with a scoring module.
        strength: factor of every subject's mask.
        with_subjects: False makes the images from the text alone, the lower baseline of similarity.
        size: side of the images in pixels.
    """

    steps: int = 25
    preset: str = DEFAULT
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    mask: MaskSettings | None = None
    keep_share: float = 0.8
    strength: float = 1.0
    with_subjects: bool = True
    size: int | None = None

    def describe(self) -> dict[str, Any]:
        """Plain JSON values; a function of the mask is told by its name."""
        return asdict(self, dict_factory=_named)


def _named(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {name: getattr(value, "__qualname__", value) if callable(value) else value for name, value in pairs}


@dataclass(frozen=True)
class Made:
    """An image on disk and its masks of the last step, in the task's order of subjects; masks (h, w) in [0, 1]."""

    task: Task
    path: Path
    masks: tuple[np.ndarray, ...]

    @property
    def image(self) -> Image.Image:
        return opened(self.path)


def make(pipe, task: Task, setup: Setup) -> tuple[Image.Image, list[np.ndarray]]:
    """One image and, with subjects, the guidance mask of the last step for each of them, (h, w) in [0, 1]."""
    subjects = {
        subject.word: Subject(
            tuple(opened(picture) for picture in subject.images), strength=setup.strength, region=subject.region
        )
        for subject in task.subjects
    }
    preset = preset_named(setup.preset)
    steps = preset.steps or setup.steps
    picture = None if task.picture is None else opened(task.picture)
    inside = None if picture is None else hole_mask(task.hole, picture.size)
    start = {} if picture is None else {"image": picture, "mask_image": Image.fromarray(inside)}
    with preset.scheduled(pipe):
        out = pipe(
            task.prompt,
            subjects=subjects if setup.with_subjects else None,
            num_inference_steps=steps,
            guidance_scale=setup.guidance_scale,
            guidance_interval=preset.guidance_interval,
            image_guidance_scale=setup.image_guidance_scale if setup.with_subjects else None,
            mask=preset.mask(setup.mask or pipe.default_mask, steps),
            keep_share=setup.keep_share,
            height=setup.size,
            width=setup.size,
            **start,
            generator=[torch.Generator("cpu").manual_seed(task.seed)],
        )
    masks = [np.asarray(out.masks[word][-1, 0].float()) for word in subjects] if setup.with_subjects else []
    return out.images[0] if picture is None else laid_into(picture, out.images[0], inside), masks


def generate(
    pipe,
    tasks: Sequence[Task],
    setup: Setup,
    folder: Path,
    *,
    model: str = "",
    done: Callable[[int], None] | None = None,
) -> list[Made]:
    """All images of the tasks in `folder`; those already there are kept.

    Args:
        model: name of the model, part of what makes two runs the same.
        done: called with the number of finished tasks after each.

    Raises:
        ValueError: the folder holds images of another model or of other settings, or two tasks share a key.
    """
    if len({task.key for task in tasks}) != len(tasks):
        raise ValueError("Two tasks of this benchmark have the same key; every image needs a name of its own.")
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, task in enumerate(tasks, 1):
        identity = {"model": model, "setup": setup.describe(), "task": task.describe()}
        known = read_done(folder, task, identity)
        if known is None:
            image, masks = make(pipe, task, setup)
            known = write_done(folder, task, identity, image, masks)
        made.append(known)
        if done is not None:
            done(number)
    return made


def read_done(folder: Path, task: Task, identity: dict) -> Made | None:
    """The finished image of a task, or None.

    Raises:
        ValueError: it was made otherwise.
    """
    path = folder / f"{task.key}.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    if record["fingerprint"] != fingerprint(identity):
        raise ValueError(
            f"{folder} holds images of another model or of other settings ({task.key}): choose another --out folder."
        )
    masks = tuple(read_mask(folder / name) for name in record["masks"])
    return Made(task, folder / record["image"], masks)


def write_done(folder: Path, task: Task, identity: dict, image: Image.Image, masks: Sequence[np.ndarray]) -> Made:
    """Picture and masks first, the JSON that vouches for them last."""
    path = folder / f"{task.key}.png"
    write_png(path, image)
    names = [f"{task.key}.mask{place}.png" for place in range(len(masks))]
    for name, mask in zip(names, masks, strict=True):
        write_png(folder / name, mask_image(mask, mask.shape[::-1]))
    record = {**identity, "fingerprint": fingerprint(identity), "image": path.name, "masks": names}
    write_json(folder / f"{task.key}.json", record)
    # Read back, so that a run that goes on later sees exactly the same numbers.
    return Made(task, path, tuple(read_mask(folder / name) for name in names))


def read_mask(path: Path) -> np.ndarray:
    """A mask written as 8-bit grey, float32 (h, w) in [0, 1]."""
    return np.asarray(Image.open(path), dtype=np.float32) / 255


def write_json(path: Path, value: Any) -> None:
    """JSON in a folder that is made if need be; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(value, indent=1, sort_keys=True, default=str) + "\n").encode())


def without_subjects(setup: Setup) -> Setup:
    """The text-only setup of the same prompts and seeds."""
    return replace(setup, with_subjects=False)

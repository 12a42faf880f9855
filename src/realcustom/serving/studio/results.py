"""What the studio shows of a generation: progress, image, mask, gallery."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from realcustom.pictures.opening import open_image
from realcustom.pictures.overlays import overlay
from realcustom.serving.limits import Busy
from realcustom.serving.live import Live
from realcustom.serving.records import DONE, UNFINISHED, Job
from realcustom.serving.service import Service
from realcustom.serving.studio.form import place_of, read_form
from realcustom.serving.studio.look import status
from realcustom.types import MAX_SUBJECTS, REFUSED

LOOK = 0.15  # seconds between two looks at a generation
SHOWN = 60  # images of the gallery
NOTHING: dict[str, Any] = {"job": None, "index": 0}


def generate(service: Service, show_mask: bool, values: list[Any]) -> Iterator[dict[str, Any]]:
    """Submit the form and follow it; yields what changed.

    Each dict has some of: "errors" (sentences of `Form.errors`), "status" (HTML), "image" (PIL image), "job" (id of a
    generation under way), "done" (the finished job).
    """
    fields, errors = read_form(service, values)
    yield {"errors": errors}
    if any(errors):
        return
    try:
        job = service.submit(fields)
    except Busy as error:
        yield {"status": status(str(error))}
        return
    except ValueError as error:
        sentences: list[str | None] = [None] * (2 + MAX_SUBJECTS)
        sentences[place_of(str(error))] = str(error)
        yield {"errors": sentences}
        return
    yield {"job": job.id, "status": status("It waits for its turn ...")}
    live = service.runner.live(job.id)
    if live is not None:
        live.watchers += 1
        try:
            yield from _follow(service, job, live, show_mask)
        finally:
            live.watchers -= 1
    job = service.jobs.get(job.id)
    if job.state == DONE:
        yield {"done": job, "status": status(_summary(job))}
    elif job.state not in UNFINISHED:
        yield {"status": status(job.error or f"It is {job.state}.")}


def _follow(service: Service, job: Job, live: Live, show_mask: bool) -> Iterator[dict[str, Any]]:
    seen, shown = -1, None
    while not live.finished.wait(LOOK):
        if live.version == seen:
            continue
        seen = live.version
        if live.steps == 0:
            before = service.runner.position(job.id)
            yield {"status": status("It begins ..." if not before else f"{before} generations wait before it ...")}
            continue
        news: dict[str, Any] = {"status": status(f"Step {live.step} of {live.steps}", live.step, live.steps)}
        if live.preview is not None and live.preview is not shown:
            shown = live.preview
            masks = list(live.masks.values())
            news["image"] = overlay(shown, masks[0]) if show_mask and masks else shown
        yield news


def _summary(job: Job) -> str:
    count = len(job.images)
    took = (job.finished or time.time()) - (job.started or job.created)
    made = "1 image" if count == 1 else f"{count} images"
    size = f"{job.request['width']} x {job.request['height']}"
    black = [f"Image {index + 1} {REFUSED}" for index, flag in enumerate(job.flagged) if flag]
    return " ".join([f"{made} in {took:.1f} s - seed {job.request['seed']} - {size}", *black])


def view(service: Service, state: dict[str, Any], show_mask: bool, word: str | None, step: int | None) -> Any:
    """The chosen image as it is (a file, so that saving it keeps its settings), or with its mask laid over it."""
    if state["job"] is None:
        return None
    job = service.jobs.get(state["job"])
    path = service.store.pictures.path(job.images[state["index"]])
    if not show_mask or not job.masks:
        return str(path)
    masks = service.store.read_masks(job.masks)
    steps = masks.get(word, next(iter(masks.values())))
    at = len(steps) if not step else max(1, min(int(step), len(steps)))
    return enlarged(overlay(open_image(path.read_bytes()), steps[at - 1, state["index"]]))


def enlarged(image: Image.Image, side: int = 512) -> Image.Image:
    """An image of at least `side` pixels, so that a small overlay is not blurred by the browser."""
    factor = -(-side // max(image.size))
    size = (image.width * factor, image.height * factor)
    return image if factor <= 1 else image.resize(size, Image.Resampling.BICUBIC)


def mask_controls(service: Service, job: Job) -> tuple[Any, Any]:
    """Updates of the word and step fields for a finished generation."""
    words = list(job.request["subjects"]) if job.masks else []
    steps = job.request["steps"]
    choice = gr.Radio(choices=words, value=words[0] if words else None, visible=len(words) > 1)
    return choice, gr.Slider(maximum=max(2, steps), value=steps, visible=bool(words))


def thumbnails(service: Service, job: Job) -> Any:
    """Update of the small images of one generation; hidden when there is but one."""
    paths = [str(service.store.pictures.path(name)) for name in job.images]
    return gr.Gallery(paths, visible=len(paths) > 1, selected_index=None)


def made_so_far(service: Service) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """The newest images with their prompts, and for each which image of which generation it is."""
    shown, places = [], []
    for job in service.jobs.list((DONE,), SHOWN):
        for index, name in enumerate(job.images):
            if len(shown) == SHOWN:
                return shown, places
            shown.append((str(service.store.pictures.path(name)), job.asked.get("prompt", job.request["prompt"])))
            places.append({"job": job.id, "index": index})
    return shown, places

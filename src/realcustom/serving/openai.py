"""OpenAI's image interface on the same service: what gateways, web interfaces and agents speak."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from realcustom.serving import schema
from realcustom.serving.limits import Draining, TooLarge
from realcustom.serving.openai_fields import IMAGE, WORD, Asked, mask_region, read_fields, subjects_of, typed
from realcustom.serving.problems import Refusal
from realcustom.serving.reading import is_form, read_form, read_json, store_pictures
from realcustom.serving.records import UNFINISHED, Job
from realcustom.serving.schema import body, problems
from realcustom.serving.service import Service
from realcustom.types import REFUSED

PAUSE = 0.05  # seconds between two looks at a generation
LEFT = 499  # what servers log for a client that did not wait
STATUSES = (400, 404, 413, 429, 500)


def openai_router(service: Service) -> APIRouter:
    """OpenAI's routes; those that share a path with ours answer to both kinds of clients."""
    api = APIRouter(prefix="/v1")

    @api.post(
        "/images/generations",
        response_model=schema.ImagesView,
        openapi_extra=body(schema.ImageBody),
        responses=problems(*STATUSES),
    )
    async def create_image(request: Request):
        """OpenAI's images.generate: images of a prompt. Every field of a GenerationBody may stand beside its own."""
        record = await _json(request)
        with refusing():
            asked = read_fields(record)
            wanted = await run_in_threadpool(store_pictures, asked.fields, {}, service)
        return await _answered(service, request, Asked(wanted, asked.as_url))

    @api.post(
        "/images/edits",
        response_model=schema.ImagesView,
        openapi_extra={"requestBody": schema.edit_body()},
        responses=problems(*STATUSES),
    )
    async def edit_image(request: Request):
        """OpenAI's images.edit: images of a prompt with the pictures as references of its words."""
        record, files = await _parameters(request)
        with refusing():
            asked = await run_in_threadpool(_edit, record, files, service)
        return await _answered(service, request, asked)

    return api


@contextmanager
def refusing() -> Iterator[None]:
    """A user's mistake becomes a 400, as OpenAI has it."""
    try:
        yield
    except (Refusal, TooLarge):
        raise
    except ValueError as error:
        raise Refusal(str(error)) from error


async def _json(request: Request) -> dict[str, Any]:
    try:
        return await read_json(request)
    except HTTPException as error:
        raise Refusal(str(error.detail)) from error


async def _parameters(request: Request) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The parameters of a JSON or multipart body, and apart from them image, mask and words, in lists."""
    record: dict[str, Any] = {}
    lists: dict[str, list[Any]] = {"image": [], "mask": [], "words": []}
    if not is_form(request):
        record = await _json(request)
        for name, values in lists.items():
            given = record.pop(name, record.pop(f"{name}[]", None))
            values += given if isinstance(given, list) else [] if given is None else [given]
        return record, lists
    for name, value in await read_form(request):
        kind = "image" if IMAGE.fullmatch(name) else "words" if WORD.fullmatch(name) else name
        if kind in lists:
            lists[kind].append(value)
        elif isinstance(value, bytes):
            raise Refusal(f"There is no file {name[:80]!r} in an edit; there are image[] and mask.", name[:80])
        elif name in record:
            raise Refusal(f"{name[:80]} is given twice.", name[:80])
        else:
            record[name] = typed(name, value)
    return record, lists


def _edit(record: dict[str, Any], lists: Mapping[str, list[Any]], service: Service) -> Asked:
    """The fields of an edit, its pictures in the store."""
    asked = read_fields(record)
    if "subjects" in asked.fields:
        raise Refusal("An edit has image[] and words[] in the place of subjects.", "subjects")
    if len(lists["mask"]) > 1:
        raise Refusal("An edit has one mask.", "mask")
    files = {f"image {index}": value for index, value in enumerate(lists["image"]) if isinstance(value, bytes)}
    images = [f"image {index}" if isinstance(value, bytes) else value for index, value in enumerate(lists["image"])]
    words = [word.strip() if isinstance(word, str) else word for word in lists["words"]]
    if not all(isinstance(word, str) for word in words):
        raise Refusal("words[] must be texts.", "words")
    region = None
    for mask in lists["mask"]:
        # Bounds first, which the store knows.
        name = service.store.add_upload(mask, service.limits)["id"] if isinstance(mask, bytes) else mask
        name = store_pictures({"images": name}, {}, service)["images"]
        region, files["mask"] = "mask", mask_region(service.store.pictures.get(name))
    known = service.engine.describe().get("knows", {}).get("words", ())
    subjects = subjects_of(asked.fields.get("prompt"), images, words, region, known)
    return Asked(store_pictures({**asked.fields, "subjects": subjects}, files, service), asked.as_url)


async def _answered(service: Service, request: Request, asked: Asked) -> Response:
    """Make it and wait for it; a client that leaves takes its generation along."""
    model = asked.fields.get("model")
    if model is not None and model != service.name:
        sentence = f'This server has the model "{service.name}", not {str(model)[:80]!r}.'
        raise Refusal(sentence, "model", "model_not_found", 404)
    with refusing():
        job = await run_in_threadpool(service.submit, asked.fields)
    finished = await _finished(service, request, job)
    if finished is None:
        return Response(status_code=LEFT)
    if finished.state in UNFINISHED:
        raise Draining
    if not finished.finished_well:
        # Trying it again, as OpenAI's client would, changes nothing.
        raise HTTPException(500, finished.error or "It failed.", {"x-should-retry": "false"})
    if all(finished.flagged):
        raise Refusal(f"Every image {REFUSED}", code="moderation_blocked")
    return JSONResponse(await run_in_threadpool(_images, service, request, finished, asked.as_url))


async def _finished(service: Service, request: Request, job: Job) -> Job | None:
    """The job once it is finished; None where the client has left, with which it ends."""
    live = service.runner.live(job.id)
    while live is not None and not live.finished.is_set():
        if await request.is_disconnected():
            await run_in_threadpool(service.runner.cancel, job.id)
            return None
        await asyncio.sleep(PAUSE)
    return await run_in_threadpool(service.jobs.get, job.id)


def _images(service: Service, request: Request, job: Job, as_url: bool) -> dict[str, Any]:
    base = str(request.base_url).rstrip("/")
    data: list[dict[str, Any]] = [
        {"url": f"{base}/v1/generations/{job.id}/images/{index}"}
        if as_url
        else {"b64_json": base64.b64encode(service.store.pictures.get(name)).decode()}
        for index, name in enumerate(job.images)
    ]
    if job.request["prompt"] != job.asked.get("prompt"):
        data = [{**entry, "revised_prompt": job.request["prompt"]} for entry in data]
    data = [entry | ({"flagged": True} if flag else {}) for entry, flag in zip(data, job.flagged, strict=True)]
    size = f"{job.request['width']}x{job.request['height']}"
    answer = {"created": int(job.created), "data": data, "output_format": "png", "size": size, "id": job.id}
    warnings = list(service.engine.warnings(job.request["prompt"]))
    return answer | ({"warnings": warnings} if warnings else {})

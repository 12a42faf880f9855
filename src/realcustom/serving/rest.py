"""The REST interface: /v1."""

from __future__ import annotations

import io
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool

import realcustom
from realcustom.pictures.opening import open_image
from realcustom.pictures.overlays import mask_image, overlay
from realcustom.serving import schema
from realcustom.serving.blobs import NotHere
from realcustom.serving.events import event_response, news_response
from realcustom.serving.faces import find_face
from realcustom.serving.limits import check_pixels
from realcustom.serving.live import mask_url
from realcustom.serving.metrics import CONTENT_TYPE
from realcustom.serving.problems import Refusal
from realcustom.serving.reading import read_picture, read_record, refusing
from realcustom.serving.records import STATES, UNFINISHED, Job
from realcustom.serving.schema import body, problems
from realcustom.serving.service import Service

# A result never changes under its id; only the one browser may keep it, since it may need a token.
FOREVER = {"cache-control": "private, max-age=31536000, immutable", "x-content-type-options": "nosniff"}
NO_MASK = "There is no such mask."
PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "The picture."}}


# Types of events have no place in OpenAPI 3.1; `itemSchema` is that of 3.2.
def _events(**models: str) -> dict[str, Any]:
    """What a stream sends: the schema of each kind of event."""
    kinds = [
        {
            "type": "object",
            "required": ["event", "data"],
            "properties": {
                "event": {"const": kind},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {"$ref": f"#/components/schemas/{model}"},
                },
            },
        }
        for kind, model in models.items()
    ]
    return {"text/event-stream": {"schema": {"type": "string"}, "itemSchema": {"oneOf": kinds}}}


Id = Annotated[str, Path(max_length=200)]
Index = Annotated[int, Path(ge=0, le=1000)]


def router(service: Service) -> APIRouter:
    """All of /v1 on one service."""
    api = APIRouter(prefix="/v1")
    _generations(api, service)
    _results(api, service)
    _pictures(api, service)
    _characters(api, service)
    _about(api, service)
    return api


def _generations(api: APIRouter, service: Service) -> None:
    @api.post(
        "/generations",
        status_code=202,
        response_model=schema.JobView,
        openapi_extra=body(schema.GenerationBody, multipart=True),
        responses=problems(400, 413, 422, 429),
    )
    async def create_generation(
        request: Request,
        response: Response,
        key: Annotated[
            str | None, Header(alias="Idempotency-Key", description="Sent again, it is one generation.")
        ] = None,
    ):
        """Queue a generation. Poll it, or watch its events, until its state is done."""
        record = await read_record(request, service)
        with refusing():
            made = await run_in_threadpool(lambda: service.describe_job(service.submit(record, key)))
        response.headers["location"] = f"{service.root_path}/v1/generations/{made['id']}"
        return made

    @api.get("/generations", response_model=schema.JobList, responses=problems(422))
    def list_generations(
        state: Annotated[str | None, Query(description=f"One of {', '.join(STATES)}.")] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    ):
        """Generations, newest first."""
        if state is not None and state not in STATES:
            raise HTTPException(422, f"There is no state {state[:40]!r}; there are {', '.join(STATES)}.")
        jobs = service.jobs.list((state,) if state else STATES, limit, before)
        older = jobs[-1].number if len(jobs) == limit else None
        return {"generations": [service.describe_job(job) for job in jobs], "before": older}

    @api.get("/generations/{id}", response_model=schema.JobView, responses=problems(404))
    def get_generation(id: Id):
        """How far a generation is, and what it made."""
        return service.describe_job(service.jobs.get(id))

    @api.get(
        "/generations/{id}/events",
        response_class=EventSourceResponse,
        responses={
            200: {
                "content": _events(progress="ProgressEvent", end="JobView", stopping="JobView"),
                "description": "progress events, then end or stopping",
            },
            **problems(404),
        },
    )
    def watch_generation(id: Id):
        """Server-sent events: "progress" with step, steps, a preview and the masks as data: URLs; at last "end",
        or "stopping" where the server is stopped before."""
        service.jobs.get(id)
        return event_response(service, id)

    @api.get(
        "/events",
        response_class=EventSourceResponse,
        responses={
            200: {
                "content": _events(progress="NewsEvent", end="JobView", stopping="Nothing"),
                "description": "progress and end; stopping last",
            }
        },
    )
    def watch_all():
        """Server-sent events of all generations of this token: "progress" with id, step, steps and position, "end"."""
        return news_response(service)

    @api.post("/generations/{id}/cancel", response_model=schema.JobView, responses=problems(404))
    def cancel_generation(id: Id):
        """Stop a generation after the step it is at; a finished one stays as it is."""
        return service.describe_job(service.runner.cancel(id))

    @api.delete("/generations/{id}", status_code=204, responses=problems(404, 409))
    def remove_generation(id: Id):
        """Forget a finished generation at once, and its images where nothing else uses them."""
        try:
            service.jobs.remove(id)
        except ValueError as error:
            raise HTTPException(409, str(error)) from error


def _results(api: APIRouter, service: Service) -> None:
    @api.get("/generations/{id}/images/{index}", response_class=FileResponse, responses={**PNG, **problems(404, 409)})
    def get_image(id: Id, index: Index):
        """A finished image: PNG, with everything needed to make it again in its text chunk."""
        return _file(service, _image(service, id, index))

    @api.get("/generations/{id}/images/{index}/metadata", responses=problems(404, 409))
    def get_metadata(id: Id, index: Index) -> dict[str, Any]:
        """The settings of one image: its request, model, device and versions."""
        with refusing():
            return service.settings_in(service.store.pictures.get(_image(service, id, index)))

    @api.get(
        "/generations/{id}/images/{index}/masks/{word}",
        response_class=Response,
        responses={**PNG, **problems(404, 409)},
    )
    def get_mask(
        id: Id,
        index: Index,
        word: Annotated[str, Path(max_length=2000)],
        step: Annotated[int | None, Query(ge=0, le=1000, description="The last step by default.")] = None,
        over: Annotated[bool, Query(description="Laid over the image instead of grey.")] = False,
    ):
        """The guidance mask of a word, white where the reference acts, at the size of the image."""
        steps = _masks(service, id, index, word)
        if step is not None and step >= len(steps):
            raise NotHere(NO_MASK)
        image = open_image(service.store.pictures.get(_image(service, id, index)))
        mask = steps[-1 if step is None else step]
        picture = overlay(image, mask) if over else mask_image(mask, image.size)
        stream = io.BytesIO()
        picture.save(stream, format="PNG")
        return Response(stream.getvalue(), media_type="image/png", headers=FOREVER)

    @api.get(
        "/generations/{id}/images/{index}/masks/{word}/steps",
        response_model=schema.StepMasks,
        responses=problems(404, 409),
    )
    def get_step_masks(id: Id, index: Index, word: Annotated[str, Path(max_length=2000)], response: Response):
        """The guidance masks of a word at every step, at their own size, to be shown one after another."""
        steps = _masks(service, id, index, word)
        response.headers.update(FOREVER)
        height, width = steps.shape[1:]
        return {"word": word, "width": width, "height": height, "masks": [mask_url(mask) for mask in steps]}


def _pictures(api: APIRouter, service: Service) -> None:
    binary = {"type": "string", "format": "binary"}
    upload: dict[str, Any] = {"image/*": {"schema": binary}}
    in_form = {"multipart/form-data": {"schema": {"type": "object", "properties": {"file": binary}}}}

    @api.post(
        "/images",
        status_code=201,
        response_model=schema.PictureView,
        openapi_extra={"requestBody": {"required": True, "content": {**upload, **in_form}}},
        responses=problems(400, 413, 422),
    )
    async def upload_image(request: Request):
        """Upload a picture, as the body or as a multipart file; its id can be given wherever a picture is taken."""
        data = await read_picture(request)
        with refusing():
            return await run_in_threadpool(service.store.add_upload, data, service.limits)

    @api.post(
        "/restore",
        response_model=schema.RestoredView,
        openapi_extra={"requestBody": {"required": True, "content": {"image/png": upload["image/*"], **in_form}}},
        responses=problems(400, 413, 422),
    )
    async def restore_settings(request: Request):
        """The request that a PNG of any door was made with, from its text chunk; what this server lacks is named."""
        data = await read_picture(request)
        with refusing():
            return await run_in_threadpool(lambda: service.restore(data).to_dict())

    @api.get("/images/{id}", response_class=FileResponse, responses={**PNG, **problems(404)})
    def get_picture(id: Id):
        """A picture by its id: an upload as plain RGB, or a result."""
        return _file(service, id)

    @api.delete("/images/{id}", status_code=204, responses=problems(404, 409))
    def remove_picture(id: Id):
        """Forget a picture that no generation and no character uses."""
        try:
            service.remove_picture(id)
        except ValueError as error:
            raise HTTPException(409, str(error)) from error

    @api.get("/images/{id}/face", response_model=schema.FaceView, responses=problems(404, 413, 422))
    def get_face(id: Id):
        """Where the largest face of a picture is."""
        data = service.store.pictures.get(id)
        with refusing():
            # What an earlier server has kept may be more than this one takes.
            check_pixels(data, service.limits)
            box = find_face(open_image(data))
        return {"box": box and list(box)}


def _characters(api: APIRouter, service: Service) -> None:
    wanted = body(schema.CharacterBody, multipart=True)

    @api.get("/characters", response_model=schema.CharacterList)
    def list_characters():
        """All characters by name."""
        return {"characters": [character.to_dict() for character in service.cast.list()]}

    @api.post(
        "/characters",
        status_code=201,
        response_model=schema.CharacterBody,
        openapi_extra=wanted,
        responses=problems(400, 413, 422),
    )
    async def create_character(request: Request):
        """Save a subject under a name; a prompt then uses it as @name."""
        record = await read_record(request, service)
        with refusing():
            return (await run_in_threadpool(service.save_character, record)).to_dict()

    @api.get("/characters/{name}", response_model=schema.CharacterBody, responses=problems(404))
    def get_character(name: Id):
        """One character."""
        return service.cast.get(name).to_dict()

    @api.put(
        "/characters/{name}",
        response_model=schema.CharacterBody,
        openapi_extra=wanted,
        responses=problems(400, 404, 413, 422),
    )
    async def change_character(name: Id, request: Request):
        """Put another record in the place of a character; its name may change."""
        await run_in_threadpool(service.cast.get, name)
        record = await read_record(request, service)
        with refusing():
            return (await run_in_threadpool(service.save_character, record, name)).to_dict()

    @api.delete("/characters/{name}", status_code=204, responses=problems(404))
    def remove_character(name: Id):
        """Forget a character; images made with it stay."""
        service.cast.remove(name)


def _about(api: APIRouter, service: Service) -> None:
    @api.get("/models", response_model=schema.ModelList)
    def list_models():
        """The model that is served, with its size and defaults; `object` and `data` are OpenAI's."""
        models = [{"name": service.name, **service.engine.describe()}]
        return {"object": "list", "data": [_openai_model(service)], "models": models}

    @api.get("/models/{id:path}", response_model=schema.OpenAIModel, responses=problems(404))
    def get_model(id: Annotated[str, Path(max_length=2000)]):
        """One model as OpenAI tells of it."""
        if id != service.name:
            raise Refusal(f"There is no model {id[:80]!r}.", "model", "model_not_found", 404)
        return _openai_model(service)

    # Both only look at what is known, so that they answer whatever else is blocked.
    @api.get("/health", response_model=schema.Health)
    async def health():
        """Answers as long as the server runs; what is wrong stands in `problems`."""
        return _health(service)

    @api.get("/ready", response_model=schema.Health, responses={503: {"model": schema.Health}})
    async def ready(response: Response):
        """200 while generations are made, 503 while they are not."""
        state = _health(service)
        response.status_code = 503 if state["problems"] else 200
        return state

    @api.get("/metrics", response_class=PlainTextResponse)
    def metrics():
        """Counters for Prometheus."""
        return PlainTextResponse(service.metrics.text(), media_type=CONTENT_TYPE)


def _openai_model(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": int(service.started), "owned_by": "realcustom"}


def _health(service: Service) -> dict[str, Any]:
    problems = service.runner.problems()
    return {
        "status": "troubled" if problems else "ok",
        "problems": problems,
        "version": realcustom.__version__,
        "queued": service.runner.waiting,
    }


def _file(service: Service, name: str) -> FileResponse:
    service.store.pictures.get(name)  # whole, or 404
    path = service.store.pictures.path(name)
    return FileResponse(
        path, media_type="image/png", filename=f"{name[:16]}.png", headers=FOREVER, content_disposition_type="inline"
    )


def _done(service: Service, name: str) -> Job:
    job = service.jobs.get(name)
    if not job.finished_well:
        raise HTTPException(
            409, f"This generation is {job.state}; it has no images" + (" yet." if job.state in UNFINISHED else ".")
        )
    return job


def _masks(service: Service, name: str, index: int, word: str) -> np.ndarray:
    """The masks (steps, h, w) in [0, 1] of a word and an image."""
    job = _done(service, name)
    masks = service.store.read_masks(job.masks) if job.masks else {}
    if word not in masks or index >= masks[word].shape[1]:
        raise NotHere(NO_MASK)
    return masks[word][:, index]


def _image(service: Service, name: str, index: int) -> str:
    images = _done(service, name).images
    if index >= len(images):
        raise NotHere(f"This generation has {len(images)} images; there is no image {index}.")
    return images[index]

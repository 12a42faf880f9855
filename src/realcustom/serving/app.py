"""The server: REST interface and studio on one service, behind one guard."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import lru_cache, partial

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException as PlainHTTPException

import realcustom
from realcustom.serving.access import Access
from realcustom.serving.blobs import NotHere
from realcustom.serving.document import describe
from realcustom.serving.gallery_rest import gallery_router
from realcustom.serving.gate import Elsewhere, studio_app, studio_gate
from realcustom.serving.guard import Guard
from realcustom.serving.holders import Forbidden, Holders, single
from realcustom.serving.limits import Busy, Draining, NoRoom, TooLarge
from realcustom.serving.openai import openai_router
from realcustom.serving.origins import check_origins, cors
from realcustom.serving.problems import Refusal, problem_body
from realcustom.serving.rest import router
from realcustom.serving.service import Service
from realcustom.serving.trouble import StorageTrouble, storage_trouble


def create_app(
    service: Service,
    token: str | None = None,
    studio: bool = True,
    origins: Sequence[str] = (),
    holders: Holders | None = None,
    root_path: str = "",
) -> FastAPI:
    """The whole server as an ASGI application; it starts and stops the service with itself.

    Args:
        service: what answers.
        token: what every request must bring; None where only this machine can reach the server.
        studio: False leaves the web page out.
        holders: in the place of one token, several with names.
        root_path: under which a proxy shows the server, such as "/pictures"; "" for its root.
        origins: whose pages may use it from a browser, see `check_origins`.

    Raises:
        ValueError: an origin is none.
    """
    holders = holders or single(token)
    origins = check_origins(origins, bool(holders))

    service.root_path = root_path
    page = studio_app(service) if studio else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        async with page.router.lifespan_context(page) if page else nullcontext():
            yield
        service.stop()

    # The documentation page of FastAPI loads its scripts from elsewhere; the document itself is ours.
    app = FastAPI(
        title="realcustom",
        version=realcustom.__version__,
        description="Images of your own subject through a real word of the prompt.",
        lifespan=lifespan,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    # Made at the first question.
    app.openapi = lru_cache(maxsize=1)(partial(describe, app, bool(holders), root_path))
    _add_problems(app, service)
    app.include_router(openai_router(service))
    app.include_router(gallery_router(service))
    app.include_router(router(service))
    if page is not None:
        app.router.routes.append(Elsewhere("/", studio_gate(page, service)))
    app.add_middleware(Guard, limits=service.limits, holders=holders, origins=origins)
    if origins:
        app.add_middleware(cors, origins=origins)  # before the guard, since a browser asks without the token
    app.add_middleware(Access, root_path=root_path)
    return app


def _add_problems(app: FastAPI, service: Service) -> None:
    """Every refusal is {"detail": one sentence}."""

    @app.exception_handler(PlainHTTPException)
    async def refused(request: Request, error: HTTPException):
        return _problem(request, error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError):
        first = error.errors()[0]
        return _problem(request, 422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}.")

    @app.exception_handler(Refusal)
    async def mistaken(request: Request, error: Refusal):
        content = problem_body(request.url.path, error.status, str(error), error.param, error.code)
        return Response(content, error.status, media_type="application/json")

    for kind, status in ((NotHere, 404), (TooLarge, 413), (NoRoom, 507), (Forbidden, 403)):
        app.add_exception_handler(kind, partial(_known, status))

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy):
        return _problem(request, 429, str(error), {"retry-after": str(error.retry_after)})

    @app.exception_handler(Draining)
    async def draining(request: Request, error: Draining):
        return _problem(request, 503, str(error), {"retry-after": "10"})

    async def troubled(request: Request, error: Exception):
        trouble = storage_trouble(error)
        if trouble is None:
            raise error
        service.store.note(trouble)
        return _problem(request, trouble.status, str(trouble), {"retry-after": "10"})

    for kind in (StorageTrouble, OSError, sqlite3.OperationalError):
        app.add_exception_handler(kind, troubled)


async def _known(status: int, request: Request, error: Exception) -> Response:
    return _problem(request, status, str(error))


def _problem(request: Request, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    content = problem_body(request.url.path, status, sentence)
    return Response(content, status, media_type="application/json", headers=headers)

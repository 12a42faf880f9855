"""The server: REST interface and studio on one service, behind one guard."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import lru_cache, partial

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException as PlainHTTPException

import realcustom
from realcustom.serving.blobs import NotHere
from realcustom.serving.document import describe
from realcustom.serving.gate import Elsewhere, studio_app, studio_gate
from realcustom.serving.guard import Guard
from realcustom.serving.limits import Busy, NoRoom, TooLarge
from realcustom.serving.origins import check_origins, cors
from realcustom.serving.rest import router
from realcustom.serving.service import Service
from realcustom.serving.trouble import StorageTrouble, storage_trouble

LONGEST = 600  # characters of a sentence; a user's own input may be quoted in it


def create_app(service: Service, token: str | None = None, studio: bool = True, origins: Sequence[str] = ()) -> FastAPI:
    """The whole server as an ASGI application; it starts and stops the service with itself.

    Args:
        service: what answers.
        token: what every request must bring; None where only this machine can reach the server.
        studio: False leaves the web page out.
        origins: whose pages may use it from a browser, see `check_origins`.

    Raises:
        ValueError: an origin is none.
    """
    origins = check_origins(origins, token is not None)

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
    app.openapi = lru_cache(maxsize=1)(partial(describe, app, token is not None))
    _add_problems(app, service)
    app.include_router(router(service))
    if page is not None:
        app.router.routes.append(Elsewhere("/", studio_gate(page, service)))
    app.add_middleware(Guard, limits=service.limits, token=token, origins=origins)
    if origins:
        app.add_middleware(cors, origins=origins)  # first of all, since a browser asks without the token
    return app


def _add_problems(app: FastAPI, service: Service) -> None:
    """Every refusal is {"detail": one sentence}."""

    @app.exception_handler(PlainHTTPException)
    async def refused(_: Request, error: HTTPException):
        return _problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError):
        first = error.errors()[0]
        return _problem(422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}.")

    @app.exception_handler(NotHere)
    async def absent(_: Request, error: NotHere):
        return _problem(404, str(error))

    @app.exception_handler(TooLarge)
    async def large(_: Request, error: TooLarge):
        return _problem(413, str(error))

    @app.exception_handler(NoRoom)
    async def crowded(_: Request, error: NoRoom):
        return _problem(507, str(error))

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy):
        return _problem(429, str(error), {"retry-after": str(error.retry_after)})

    async def troubled(_: Request, error: Exception):
        trouble = storage_trouble(error)
        if trouble is None:
            raise error
        service.store.note(trouble)
        return _problem(trouble.status, str(trouble), {"retry-after": "10"})

    for kind in (StorageTrouble, OSError, sqlite3.OperationalError):
        app.add_exception_handler(kind, troubled)


def _problem(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    # ASCII, because a quoted input may hold what is no valid text.
    content = json.dumps({"detail": sentence[:LONGEST]})
    return Response(content, status, media_type="application/json", headers=headers)

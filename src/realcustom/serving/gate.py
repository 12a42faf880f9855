"""What of the page's framework can be reached from outside.

Gradio brings many more routes than a page uses: a reverse proxy, saved states, recordings, an editor of its own source.
Here stands the list of those that this page needs; all others do not exist. Its calls may name files, and only such as
the page itself uploaded or shows; files are stored and sent by our own code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Match, Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from realcustom.serving.blobs import ID, NotHere, write_file
from realcustom.serving.examples import example_folders
from realcustom.serving.limits import TooLarge
from realcustom.serving.service import Service

API = "/gradio_api"
NAME = r"[A-Za-z0-9_-]{1,64}"
ASSET = r"(?:[A-Za-z0-9_@-][A-Za-z0-9_.@-]*/)*[A-Za-z0-9_@-][A-Za-z0-9_.@-]*"
PAGES = re.compile(
    rf"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(?:assets|static)/{ASSET}"
    rf"|{API}/(?:info|startup-events|queue/data|heartbeat/{NAME})"
)
CALLS = re.compile(rf"{API}/(?:queue/join|cancel|run/{NAME})")
# Fields of a call that the page sends; what else it may hold is dropped.
FIELDS = ("data", "event_data", "fn_index", "trigger_id", "session_hash", "event_id")
CALL_BYTES = 2**20  # of one call: texts, numbers and names of files, never pictures
FILES = 64  # of one upload
SHOWN = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".avif": "image/avif",
}


class Elsewhere(Mount):
    """Everything but /v1, whose own answers to a wrong path or method must not be covered."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        inside = scope["type"] == "http" and scope["path"].startswith("/v1/")
        return (Match.NONE, {}) if inside else super().matches(scope)


def studio_app(service: Service) -> FastAPI:
    """The page as an application of its own, to be put behind `studio_gate`."""
    # Before gradio is imported: nothing of it may ask another machine for anything.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(upload_folder(service))
    import gradio

    from realcustom.serving.studio import build_studio, look

    # Pictures are shown from where they are: hashing and copying them would hold up all other requests.
    gradio.set_static_paths(list(shown_folders(service)[1:]))
    blocks = build_studio(service)
    # Gradio takes any path of the machine for an upload until this is set, which mounting does not do.
    blocks.has_launched = True
    return gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks,
        path="/",
        max_file_size=service.limits.upload_bytes,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        **look(),
    )


def studio_gate(studio: ASGIApp, service: Service) -> ASGIApp:
    """The mounted page behind its list of routes.

    Args:
        studio: what `studio_app` gives.
        service: whose `shown_folders` hold all files that the page may name.
    """
    folders = shown_folders(service)

    async def upload(request: Request) -> Response:
        return JSONResponse(await _keep_files(request, folders[0], service))

    async def file(request: Request) -> Response:
        path = await run_in_threadpool(page_file, folders, request.path_params["path"])
        return _file_response(path)

    async def progress(_: Request) -> Response:
        # The page waits for this before it shows an upload; ours is there when its answer is.
        return Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return None
        method, path = scope["method"], scope["path"]
        if method == "GET" and PAGES.fullmatch(path):
            # The page has no parameters; only its streams do.
            query = scope["query_string"] if path.startswith(API) else b""
            return await studio({**scope, "query_string": query}, receive, send)
        if method == "POST" and CALLS.fullmatch(path):
            return await _call(studio, folders, Request(scope, receive), send)
        raise HTTPException(404, "There is no such page.")

    routes = [
        Route(f"{API}/upload", upload, methods=["POST"]),
        Route(f"{API}/upload_progress", progress, methods=["GET"]),
        Route(f"{API}/file={{path:path}}", file, methods=["GET"]),
    ]
    return Router(routes, redirect_slashes=False, default=page)


def upload_folder(service: Service) -> Path:
    """Where the page keeps uploads and what it draws."""
    return service.store.folder / "studio"


def shown_folders(service: Service) -> tuple[Path, ...]:
    """The folders whose files the page may name: uploads, the store's pictures, examples."""
    return upload_folder(service), service.store.pictures.folder, *example_folders()


def page_file(folders: Sequence[Path], name: Any) -> Path:
    """The file that a client names, if the page may show it.

    Args:
        folders: absolute, without links.
        name: an absolute path in one of them.

    Raises:
        NotHere: it lies elsewhere, leads elsewhere, is no regular file or is not there.
    """
    absent = NotHere("There is no such file on this page.")
    if not isinstance(name, str) or "\0" in name or len(name) > 4096:
        raise absent
    path = Path(name)
    # By its name first: what lies elsewhere is not even looked at, since a device or a dead mount hangs who touches it.
    folder = next((folder for folder in folders if path.is_relative_to(folder)), None)
    if folder is None or ".." in path.parts or any(part.startswith(".") for part in path.relative_to(folder).parts):
        raise absent
    try:
        regular = stat.S_ISREG(os.lstat(path).st_mode) and os.path.realpath(path) == str(path)
    except (OSError, ValueError):
        regular = False
    if not regular:
        raise absent
    return path


def checked_call(folders: Sequence[Path], body: bytes) -> bytes:
    """A call of the page whose files are all its own, written anew, so that what was read is what is passed on.

    Raises:
        HTTPException: 400 where it cannot be read.
        NotHere: it names another file.
    """
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise HTTPException(400, "The call cannot be read.")
    record = {name: record[name] for name in FIELDS if name in record}
    if not re.fullmatch(NAME, str(record.get("session_hash"))):
        raise HTTPException(400, "The call names no session.")
    for part in _records(record):
        if "path" in part:
            part["path"] = str(page_file(folders, part["path"]))
        if not isinstance(part.get("meta", {}), dict):
            raise HTTPException(400, "The call cannot be read.")
        # Where a file lies is said by its path alone.
        part.pop("url", None)
    return json.dumps(record).encode()


def _records(value: Any) -> Iterator[dict[str, Any]]:
    """All JSON objects inside a value."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield part
            left.extend(part.values())
        elif isinstance(part, list):
            left.extend(part)


async def _call(studio: ASGIApp, folders: Sequence[Path], request: Request, send: Send) -> None:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > CALL_BYTES:
            raise TooLarge("A call of the page has at most 1 MiB.")
    checked = await run_in_threadpool(checked_call, folders, bytes(body))
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-length"]
    headers.append((b"content-length", str(len(checked)).encode()))
    unread = [{"type": "http.request", "body": checked, "more_body": False}]

    async def receive() -> Message:
        return unread.pop() if unread else await request.receive()

    await studio({**request.scope, "headers": headers, "query_string": b""}, receive, send)


async def _keep_files(request: Request, folder: Path, service: Service) -> list[str]:
    """The parts of a multipart body as files FOLDER/SHA-256/NAME; their paths."""
    try:
        async with request.form(max_files=FILES, max_fields=FILES) as form:
            parts = [part for part in form.getlist("files") if isinstance(part, UploadFile)]
            return [await run_in_threadpool(_keep_file, folder, part, service) for part in parts]
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise HTTPException(400, "The upload cannot be read.") from error


def _keep_file(folder: Path, part: UploadFile, service: Service) -> str:
    data = part.file.read()
    service.store.check_room(len(data), service.limits)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(part.filename or ""))[-80:].lstrip(".") or "file"
    path = folder / hashlib.sha256(data).hexdigest() / name
    # Written again where it is there already: its age begins anew.
    write_file(path, data)
    service.store.used += len(data)
    return str(path)


def _file_response(path: Path) -> Response:
    """Pictures are shown; whatever else was uploaded is only ever saved, so that no upload runs as a page."""
    kind = SHOWN.get(path.suffix.lower())
    headers = {"cache-control": "private, max-age=3600", "x-content-type-options": "nosniff"}
    name = f"{path.stem[:16]}.png" if ID.fullmatch(path.stem) else path.name
    return FileResponse(
        path,
        media_type=kind or "application/octet-stream",
        filename=name,
        headers=headers,
        content_disposition_type="inline" if kind else "attachment",
    )

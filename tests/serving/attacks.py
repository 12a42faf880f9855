"""A client that sends whatever it likes to an ASGI application, and what a spy asks a server for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 5.0  # seconds; a stream that goes on longer is left
MARK = b"the-secret-of-the-server"  # stands in everything that must not be found
API = "/gradio_api"


@dataclass
class Answer:
    """What came back."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.body)


class Attacker:
    """Requests straight into an application, with paths exactly as given; `headers` are of every request."""

    def __init__(self, app, headers: dict[str, str] | None = None):
        self.app = app
        self.headers = {"host": "127.0.0.1", **(headers or {})}

    async def ask(self, method: str, path: str, query: str = "", body: bytes = b"", kind: str = "") -> Answer:
        """One request; whatever is raised inside is a 500."""
        headers = {**self.headers, "content-length": str(len(body)), **({"content-type": kind} if kind else {})}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("utf-8", "surrogateescape"),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        unread = [{"type": "http.request", "body": body, "more_body": False}]
        answer = Answer(500, b"")

        async def receive():
            if unread:
                return unread.pop()
            await asyncio.sleep(PATIENCE)
            return {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            answer.body += message.get("body", b"")

        try:
            await asyncio.wait_for(self.app(scope, receive, send), PATIENCE)
        except Exception as error:
            answer.body += repr(error).encode()
        return answer

    async def post(self, path: str, record: Any) -> Answer:
        """One JSON request."""
        return await self.ask("POST", path, body=json.dumps(record).encode(), kind="application/json")


def gradio_routes(routes) -> Iterator[tuple[str, str]]:
    """All (method, path with its parameters) of an application, those of routers inside it too."""
    for route in routes:
        inside = getattr(route, "original_router", None) or getattr(route, "app", None)
        if getattr(route, "methods", None):
            yield from ((method, route.path) for method in sorted(route.methods))
        elif hasattr(inside, "routes"):
            yield from gradio_routes(inside.routes)


def disguises(secret: Path, folder: Path) -> list[str]:
    """Ways to name a file outside `folder`, which is one that may be named."""
    up = "/".join([".."] * len(folder.parts))
    return [
        str(secret),
        f"{folder}/../{secret.name}",
        f"{folder}/{up}{secret}",
        f"{folder}//..//..//..//..{secret}",
        f"/{secret}",
        f"file://{secret}",
        f"{secret}\0.png",
        f"{up}{secret}",
    ]


def file_value(path: str) -> dict[str, Any]:
    """A file as the page names one."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "rex.png"}


def values(kind: str, path: str) -> list[Any]:
    """What a field of a kind may hold that names a file."""
    file = file_value(path)
    if kind == "gallery":
        return [[{"image": file, "caption": None}], [{"video": file, "caption": None}]]
    return [file, [file], {"path": path}]


def calls(config: dict[str, Any], path: str, text: bool = False) -> Iterator[tuple[int, list[Any]]]:
    """(function, data) for every function of the page and every field of it that may name a file, or hold its name."""
    kinds = {part["id"]: part["type"] for part in config["components"]}
    fillings = {"gallery": [], "slider": 1, "number": 1, "textbox": "a dog", "checkbox": False}
    for function in config["dependencies"]:
        inputs = [kinds[part] for part in function["inputs"]]
        plain = [fillings.get(kind) for kind in inputs]
        for index, kind in enumerate(inputs):
            for value in [path] if text else values(kind, path):
                yield function["id"], [*plain[:index], value, *plain[index + 1 :]]

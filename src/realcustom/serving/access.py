"""The outermost layer: every request has an id, a span and a line in the log."""

from __future__ import annotations

import re
import secrets
import time

from realcustom.serving import logs, tracing

GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
WORDS = re.compile(r"(/masks/).*", re.DOTALL)  # a mask is named by a word of its prompt


class Access:
    """ASGI middleware: takes X-Request-Id or makes one, echoes it, and writes what was answered.

    root_path: what a proxy has cut off the paths.
    """

    def __init__(self, app, root_path: str = ""):
        self.app, self.root_path = app, root_path

    async def __call__(self, scope, receive, send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if self.root_path:
            scope["root_path"] = self.root_path
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        wanted = headers.get("x-request-id", "")
        request_id = wanted if GOOD_ID.fullmatch(wanted) else secrets.token_hex(8)
        answer = {"status": 500, "bytes": 0}

        async def sending(message) -> None:
            if message["type"] == "http.response.start":
                answer["status"] = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            answer["bytes"] += len(message.get("body", b""))
            await send(message)

        # Neither query, which may hold a token, nor words of a prompt.
        path = WORDS.sub(r"\1...", scope["path"])[:200]
        state = tracing.REQUEST_ID.set(request_id)
        start = time.monotonic()
        try:
            with tracing.span(scope["method"], tracing.caller(headers), path=path, request_id=request_id) as span:
                try:
                    await self.app(scope, receive, sending)
                finally:
                    if span is not None:
                        span.set_attribute("http.response.status_code", answer["status"])
        finally:
            facts = {
                "method": scope["method"],
                "path": path,
                "status": answer["status"],
                "bytes": answer["bytes"],
                "seconds": round(time.monotonic() - start, 4),
                "client": (scope.get("client") or (None,))[0],
                "request_id": request_id,
                "token": scope.get("realcustom.holder"),
            }
            logs.access.info("request", extra={"facts": facts})
            tracing.REQUEST_ID.reset(state)

"""Who may come in, and with how much: one layer before everything else."""

from __future__ import annotations

import hmac
import html
import ipaddress
import json
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlsplit

from realcustom.serving.limits import Limits, TooLarge

COOKIE = "realcustom_token"
OPEN = ("/v1/health", "/v1/ready")  # answers without a token, for load balancers

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>realcustom</title><style>body{font:1.1rem system-ui,sans-serif;max-width:24rem;margin:20vh auto;padding:0 1rem}
input,button{font:inherit;padding:.5rem;width:100%;box-sizing:border-box;margin:.3rem 0}</style>
<h1>realcustom</h1><form method="get" action="/"><label for="token">Token of this server</label>
<input id="token" name="token" type="password" autofocus required><button>Open the studio</button></form>
<p role="alert">SENTENCE</p></html>"""


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` is reached from this machine alone."""
    name = host.strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware: token, foreign pages, size of the body.

    With a token, every path but `OPEN` needs it as `Authorization: Bearer TOKEN`; a browser gets it into a cookie by
    opening /?token=TOKEN. Without one the server is bound to this machine, and only pages of its own may use it: a
    foreign web page can make a browser send requests here, but not under the name 127.0.0.1 and from this origin.
    """

    def __init__(self, app, limits: Limits, token: str | None = None):
        self.app, self.limits, self.token = app, limits, token

    async def __call__(self, scope, receive, send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refusal(scope, headers)
        if refused is not None:
            return await _answer(scope, receive, send, *refused)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.limits.upload_bytes:
            return await _answer(scope, receive, send, 413, self._too_large())
        return await self._bounded(scope, receive, send)

    def _refusal(self, scope, headers: dict[str, str]):
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if self.token is None:
            if not is_loopback(host):
                return 403, "This server answers only under the name of this machine: http://127.0.0.1."
            if _foreign(headers):
                return 403, "This request comes from a page of another site."
            return None
        if scope["path"] in OPEN:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._right(given.strip()):
            return None
        cookie = SimpleCookie()
        cookie.load(headers.get("cookie", "").encode("ascii", "ignore").decode())
        if COOKIE in cookie and self._right(cookie[COOKIE].value):
            return None if not _foreign(headers) else (403, "This request comes from a page of another site.")
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token")
        if scope.get("method") == "GET" and scope["path"] == "/" and asked and self._right(asked[0]):
            return 303, "", [("location", "/"), ("set-cookie", _cookie(self.token))]
        sentence = "The token is wrong." if given or asked else "This server needs its token."
        if scope.get("method") == "GET" and "text/html" in headers.get("accept", ""):
            return 401, PAGE.replace("SENTENCE", html.escape(sentence)), [("content-type", "text/html; charset=utf-8")]
        return 401, sentence, [("www-authenticate", "Bearer")]

    def _right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode("utf-8", "replace"))

    def _too_large(self) -> str:
        return f"A request has at most {self.limits.upload_bytes / 2**20:g} MiB here."

    async def _bounded(self, scope, receive, send) -> None:
        """Count a body that did not say its length."""
        seen = 0
        begun = False

        async def counted():
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b"")) if message["type"] == "http.request" else 0
            if seen > self.limits.upload_bytes:
                raise TooLarge(self._too_large())
            return message

        async def watched(message):
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except TooLarge:
            if not begun:
                await _answer(scope, receive, send, 413, self._too_large())


def _foreign(headers: dict[str, str]) -> bool:
    """Whether a browser says that a page of another site sent this."""
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host", "")


def _cookie(token: str) -> str:
    cookie = SimpleCookie()
    cookie[COOKIE] = token
    cookie[COOKIE].update({"httponly": True, "samesite": "Strict", "path": "/"})
    return cookie[COOKIE].OutputString()


async def _answer(scope, receive, send, status: int, text: str, headers: list[tuple[str, str]] | None = None) -> None:
    if scope["type"] == "websocket":
        await receive()
        return await send({"type": "websocket.close", "code": 4401})
    headers = list(headers or [])
    body = text.encode()
    if not any(name == "content-type" for name, _ in headers):
        headers.append(("content-type", "application/json"))
        body = json.dumps({"detail": text}).encode()
    headers.append(("content-length", str(len(body))))
    await send(
        {"type": "http.response.start", "status": status, "headers": [(k.encode(), v.encode()) for k, v in headers]}
    )
    await send({"type": "http.response.body", "body": body})

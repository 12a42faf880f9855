"""Who may come in, and with how much: one layer before everything else."""

from __future__ import annotations

import asyncio
import html
import ipaddress
import logging
from collections.abc import Collection
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlsplit

from realcustom.serving.holders import HOLDER, Holder, Holders
from realcustom.serving.limits import Limits, TooLarge
from realcustom.serving.problems import problem_body

log = logging.getLogger(__name__)

COOKIE = "realcustom_token"
OPEN = ("/v1/health", "/v1/ready")  # answers without a token, for load balancers

WRONG = "The token is wrong."
FREE, SLOWEST, ADDRESSES = 3, 5.0, 10_000  # wrong tokens that are not slowed; seconds at most; addresses remembered

COMMON = {"x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "no-referrer"}
BROWSER_API = {**COMMON, "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox"}
# The page's framework writes scripts and styles into the page itself; nothing comes from elsewhere.
BROWSER_PAGE = {
    **COMMON,
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
}

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

    With tokens, every path but `OPEN` needs one as `Authorization: Bearer TOKEN`; a browser gets it into a cookie by
    opening /?token=TOKEN. Without one the server is bound to this machine, and only pages of its own may use it: a
    foreign web page can make a browser send requests here, but not under the name 127.0.0.1 and from this origin.

    holders: of the tokens.
    origins: of other sites' pages that may use it, too; with a token they bring it as a header, never as a cookie.
    """

    def __init__(self, app, limits: Limits, holders: Holders, origins: Collection[str] = ()):
        self.app, self.limits, self.holders, self.origins = app, limits, holders, origins
        self._failures: dict[str, int] = {}  # wrong tokens by address

    async def __call__(self, scope, receive, send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        send = _with_headers(send, BROWSER_API if scope["path"].startswith("/v1/") else BROWSER_PAGE)
        holder, refused = self._who(scope, headers)
        if refused is not None:
            if refused[1] == WRONG:
                await self._slow_down(scope)
            return await _answer(scope, receive, send, *refused)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.limits.upload_bytes:
            return await _answer(scope, receive, send, 413, self._too_large())
        state = HOLDER.set(holder)
        scope["realcustom.holder"] = holder and holder.name
        try:
            return await self._bounded(scope, receive, send)
        finally:
            HOLDER.reset(state)

    def _who(self, scope, headers: dict[str, str]) -> tuple[Holder | None, tuple | None]:
        """Whose request this is, and how it is refused where it is."""
        if not self.holders:
            return None, self._stranger(headers)
        if scope["path"] in OPEN:
            return None, None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        holder = self.holders.find(given.strip()) if scheme.lower() == "bearer" else None
        if holder is not None:
            return holder, None
        for value in _cookies(headers.get("cookie", "")):
            holder = self.holders.find(value)
            if holder is not None:
                return holder, (403, "This request comes from a page of another site.") if _foreign(headers) else None
        return None, self._without(scope, headers, given)

    def _stranger(self, headers: dict[str, str]) -> tuple | None:
        """What a server without tokens refuses."""
        if not is_loopback(_host_name(headers.get("host", ""))):
            return 403, "This server answers only under the name of this machine: http://127.0.0.1."
        if headers.get("origin") not in self.origins and _foreign(headers):
            return 403, "This request comes from a page of another site."
        return None

    def _without(self, scope, headers: dict[str, str], given: str) -> tuple:
        """The answer to a request without a right token; the page's address may bring one."""
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token")
        if scope.get("method") == "GET" and scope["path"] == "/" and asked and self.holders.find(asked[0]):
            place = scope.get("root_path", "") + "/"
            return 303, "", [("location", place), ("set-cookie", _cookie(asked[0], place, _encrypted(scope, headers)))]
        sentence = WRONG if given or asked else "This server needs its token."
        page = scope.get("method") == "GET" and not scope["path"].startswith("/v1/")
        if page and "text/html" in headers.get("accept", ""):
            return 401, sentence, [("content-type", "text/html; charset=utf-8")]
        return 401, sentence, [("www-authenticate", "Bearer")]

    async def _slow_down(self, scope) -> None:
        """Let a wrong token be answered the later, the more of them came from an address; right ones never wait."""
        address = (scope.get("client") or ("unknown",))[0]
        count = self._failures.pop(address, 0) + 1
        self._failures[address] = count
        if len(self._failures) > ADDRESSES:
            del self._failures[next(iter(self._failures))]
        log.warning("wrong token from %s (%d in all)", address, count)
        await asyncio.sleep(min(SLOWEST, 0.1 * 2 ** min(count - 1, 16)) if count > FREE else 0)

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


def _host_name(text: str) -> str:
    """The name in a Host header, "" where it cannot be read."""
    try:
        return urlsplit(f"//{text}").hostname or ""
    except ValueError:
        return ""


def _foreign(headers: dict[str, str]) -> bool:
    """Whether a browser says that a page of another site sent this.

    Sec-Fetch-Site says it whatever a proxy made of the Host; browsers send it under TLS and to this machine. Elsewhere
    the origin is compared with the Host that the browser saw.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        # Following a link of another site to the page is no request of that site's own.
        return site not in ("same-origin", "none") and headers.get("sec-fetch-mode") != "navigate"
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        netloc = urlsplit(origin).netloc
    except ValueError:
        return True
    return not netloc or netloc not in (headers.get("host", ""), headers.get("x-forwarded-host", ""))


def _encrypted(scope, headers: dict[str, str]) -> bool:
    """Whether the browser speaks TLS, with us or with a proxy."""
    return "https" in (scope.get("scheme"), headers.get("x-forwarded-proto", "").split(",")[0].strip().lower())


def _cookies(text: str) -> list[str]:
    """All values of our cookie; other sites' servers on this host may have set others, well formed or not."""
    pairs = [part.strip().partition("=") for part in text.split(";")]
    return [value.strip('"') for name, _, value in pairs if name == COOKIE]


def _cookie(token: str, path: str, secure: bool) -> str:
    cookie = SimpleCookie()
    cookie[COOKIE] = token
    cookie[COOKIE].update({"httponly": True, "samesite": "Strict", "path": path, "secure": secure})
    return cookie[COOKIE].OutputString()


def _with_headers(send, headers: dict[str, str]):
    """`send` with what a browser must know of every answer."""

    async def sending(message) -> None:
        if message["type"] == "http.response.start":
            told = {name.lower() for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in headers.items() if name.encode() not in told]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending


async def _answer(scope, receive, send, status: int, text: str, headers: list[tuple[str, str]] | None = None) -> None:
    if scope["type"] == "websocket":
        await receive()
        return await send({"type": "websocket.close", "code": 4401})
    headers = list(headers or [])
    body = PAGE.replace("SENTENCE", html.escape(text)).encode()
    if not any(name == "content-type" for name, _ in headers):
        headers.append(("content-type", "application/json"))
        body = problem_body(scope["path"], status, text)
    headers.append(("content-length", str(len(body))))
    await send(
        {"type": "http.response.start", "status": status, "headers": [(k.encode(), v.encode()) for k, v in headers]}
    )
    await send({"type": "http.response.body", "body": body})

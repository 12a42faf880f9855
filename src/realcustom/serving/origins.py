"""Pages of other sites that may use this server: those that were named, and nobody's cookies."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware

ANY = "*"
PORTS = {"http": 80, "https": 443}


def check_origins(origins: Sequence[str], token: bool) -> tuple[str, ...]:
    """Origins as browsers write them: scheme, name in lower case, and a port that is not the scheme's own.

    Args:
        origins: such as "https://example.org" or "http://localhost:3000"; "*" is every page, and needs a token.
        token: whether requests must bring one.

    Raises:
        ValueError: one of them has another form, or would open the server to every page without a token.
    """
    if ANY in origins and not token:
        raise ValueError('--cors "*" would let every web page use this server: name the pages, or choose a --token.')
    return tuple(dict.fromkeys(origin if origin == ANY else _checked(origin) for origin in origins))


def cors(app, origins: Sequence[str]) -> CORSMiddleware:
    """The application with CORS for these origins.

    Browsers send no cookies along: a page of another site brings the token itself, as `Authorization: Bearer`.
    """
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "PUT", "DELETE"),
        allow_headers=(ANY,),
        expose_headers=("Location", "Retry-After"),
        allow_credentials=False,
    )


def _checked(origin: str) -> str:
    refusal = ValueError(
        f'--cors takes an origin such as https://example.org or http://localhost:3000, not "{origin}".'
    )
    try:
        parts = urlsplit(origin.strip())
        port = parts.port
    except ValueError:
        raise refusal from None
    strange = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc or "*" in parts.netloc
    if parts.scheme not in PORTS or not parts.hostname or not parts.hostname.isascii() or strange:
        raise refusal
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{name}" + ("" if port in (None, PORTS[parts.scheme]) else f":{port}")

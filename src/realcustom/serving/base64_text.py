"""Base64 as clients write it: plain, in a data: URL, in lines of 76 characters, URL-safe, with and without padding."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote

SHORTEST = 80  # characters of the smallest picture file; anything shorter is a name
WHITE = re.compile(r"[ \t\r\n]+")
PLAIN = re.compile(r"[A-Za-z0-9+/_\-]+={0,2}")
URL_SAFE = str.maketrans("-_", "+/")


def is_base64(text: str) -> bool:
    """Whether a text can only be meant as the base64 of a file."""
    return len(text) >= SHORTEST and PLAIN.fullmatch(WHITE.sub("", text)) is not None


def decode_base64(text: str) -> bytes:
    """The bytes of base64 text or of a data: URL (RFC 2397) of it.

    Raises:
        ValueError: one sentence; it is neither.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().rstrip().endswith(";base64"):
            raise ValueError("A data: URL of a picture must be base64: data:image/png;base64,...")
        # The signs + / = may be written %2B %2F %3D in a URL.
        text = unquote(text) if "%" in text else text
    text = WHITE.sub("", text).translate(URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("The base64 text of a picture is damaged or cut off.") from None

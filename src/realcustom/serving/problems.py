"""What a refusal looks like: one sentence, and for clients of OpenAI's interface also in the shape that they read."""

from __future__ import annotations

import json
from typing import Any

LONGEST = 600  # characters of a sentence; a user's own input may be quoted in it
SPOKEN = ("/v1/images/generations", "/v1/images/edits", "/v1/models")
CODES = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    413: ("invalid_request_error", "too_large"),
    429: ("requests", "rate_limit_exceeded"),
}


class Refusal(ValueError):
    """A user's mistake in one parameter of OpenAI's interface.

    param: its name, or None. code: OpenAI's word for it, or None. status: of HTTP.
    """

    def __init__(self, sentence: str, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(sentence)
        self.param, self.code, self.status = param, code, status


def speaks_openai(path: str) -> bool:
    """Whether clients of OpenAI's interface ask for this path."""
    return path in SPOKEN or path.startswith("/v1/models/")


def problem_body(path: str, status: int, sentence: str, param: str | None = None, code: str | None = None) -> bytes:
    """JSON of a refusal: {"detail": sentence}, on OpenAI's paths with {"error": {"message": ...}} beside it."""
    record: dict[str, Any] = {"detail": sentence[:LONGEST]}
    if speaks_openai(path):
        kind, usual = CODES.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
        record["error"] = {"message": sentence[:LONGEST], "type": kind, "param": param, "code": code or usual}
    # ASCII, because a quoted input may hold what is no valid text.
    return json.dumps(record).encode()

"""What a server's log holds; apart from the log itself, which the command line's help has no use for."""

from __future__ import annotations

from enum import StrEnum


class LogForm(StrEnum):
    """What is written: warnings only, or also requests and generations, as text or as JSON."""

    quiet = "quiet"
    text = "text"
    json = "json"

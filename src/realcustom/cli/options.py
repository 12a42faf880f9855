"""Text of the command line to a request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from realcustom.types import Subject


class Place(StrEnum):
    """Where an engine is: in this process, or on a Ray cluster."""

    local = "local"
    ray = "ray"


def read_pairs(option: str, pairs: Sequence[str], what: str) -> list[tuple[str, str]]:
    """ "word=value" texts as (word, value).

    Raises:
        ValueError: names the option and shows its form.
    """
    read = []
    for pair in pairs:
        word, sign, value = pair.partition("=")
        if not sign or not word.strip() or not value.strip():
            raise ValueError(f'{option} must look like dog={what}, not "{pair}".')
        read.append((word.strip(), value.strip()))
    return read


def read_subjects(subjects: Sequence[str], strengths: Sequence[str]) -> dict[str, Subject]:
    """--subject and --strength as word -> `Subject`; a word given several times has several references.

    Raises:
        ValueError: a text of another form, a strength that is no number, or one for a word that is no subject.
    """
    images: dict[str, list[str]] = {}
    for word, path in read_pairs("--subject", subjects, "rex.png"):
        images.setdefault(word, []).append(path)
    factors: dict[str, Any] = {}
    for word, text in read_pairs("--strength", strengths, "0.8"):
        if word not in images:
            raise ValueError(f'--strength names "{word}", for which there is no --subject.')
        try:
            factors[word] = float(text)
        except ValueError:
            raise ValueError(f'--strength {word} must be a number, not "{text}".') from None
    return {word: Subject(tuple(paths), strength=factors.get(word, 1.0)) for word, paths in images.items()}


def read_size(size: str | None) -> dict[str, int]:
    """ "256x192" (width x height) as the request's fields; nothing for None.

    Raises:
        ValueError: a text of another form.
    """
    if size is None:
        return {}
    match = re.fullmatch(r"\s*(\d{1,6})\s*[xX]\s*(\d{1,6})\s*", size)
    if match is None:
        raise ValueError(f'--size must look like 256x192 (width x height), not "{size}".')
    return {"width": int(match[1]), "height": int(match[2])}

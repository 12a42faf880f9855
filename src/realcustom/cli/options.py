"""Text of the command line to a request."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

import typer

from realcustom.engine.requests import Reference, open_reference, open_region
from realcustom.types import Subject

STDIN = "-"

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace earlier results instead of taking the next free number.")
]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="Write no settings into the images.")]


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


def read_subjects(
    subjects: Sequence[str], strengths: Sequence[str], regions: Sequence[str] = (), weights: Sequence[str] = ()
) -> dict[str, Subject]:
    """--subject, --strength, --region and --weights as word -> `Subject`; a word given several times has several
    references.

    Raises:
        ValueError: a text of another form, what is no number, or an option for a word that is no subject.
    """
    images: dict[str, list[str]] = {}
    for word, path in read_pairs("--subject", subjects, "rex.png"):
        images.setdefault(word, []).append(path)
    settings: dict[str, dict[str, Any]] = {word: {} for word in images}
    for option, texts, form, read in (
        ("strength", strengths, "0.8", lambda text: _numbers("--strength", text, 1)[0]),
        ("region", regions, "0,0,0.5,1", _region),
        ("weights", weights, "1,0.5", lambda text: _numbers("--weights", text)),
    ):
        for word, text in read_pairs(f"--{option}", texts, form):
            if word not in images:
                raise ValueError(f'--{option} names "{word}", for which there is no --subject.')
            settings[word][option] = read(text)
    return {word: Subject(tuple(paths), **settings[word]) for word, paths in images.items()}


def open_subjects(subjects: Mapping[str, Subject]) -> dict[str, Subject]:
    """Subjects with their pictures opened: paths (also ~/rex.png), URLs, and "-" for standard input.

    Raises:
        ValueError: a picture cannot be used, or standard input is named twice.
    """
    given = [place for subject in subjects.values() for place in (*subject.images, subject.region)]
    if sum(isinstance(place, str) and place == STDIN for place in given) > 1:
        raise ValueError("Standard input (-) can be one picture only.")
    opened = {}
    for word, subject in subjects.items():
        images = tuple(_opened(image, open_reference) for image in subject.images)
        region = _opened(subject.region, open_region) if isinstance(subject.region, str) else subject.region
        opened[word] = replace(subject, images=images, region=region)
    return opened


def _opened(place: Any, opener: Callable[..., Reference]) -> Reference:
    from realcustom.batch import places

    if place == STDIN:
        if sys.stdin.isatty():
            raise ValueError("A picture is to come from standard input (-), which is a terminal.")
        return replace(opener(sys.stdin.buffer.read(), "standard input"), path=None)
    if isinstance(place, str) and places.is_url(place):
        place = places.absolute(place)
        if places.is_url(place):
            return opener(places.read_bytes(place), place)
    return opener(os.path.expanduser(place))


def _numbers(option: str, text: str, count: int | None = None) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or count not in (None, len(numbers)):
        what = "a number" if count == 1 else "numbers with commas between"
        raise ValueError(f'{option} must be {what}, not "{text}".')
    return numbers


def _region(text: str) -> Any:
    """Four numbers as a box, anything else as the place of a mask."""
    try:
        return _numbers("--region", text, 4)
    except ValueError:
        return text


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

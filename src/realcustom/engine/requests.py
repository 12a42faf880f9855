"""What can be done with a request before a model is there: find its words, open its pictures, write it down.

A `Reference` is an opened picture with a name: where it came from, and the hash of what it shows. Needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from realcustom.encoders.target_word import target_spans
from realcustom.engine.characters import check_mentions
from realcustom.engine.presets import preset_named
from realcustom.pictures.content import pixels_sha256
from realcustom.pictures.opening import open_image
from realcustom.types import Request, Subject


@dataclass(frozen=True)
class Reference:
    """An opened picture.

    image: upright RGB.
    path: where it was read from, absolute; None for a picture that was given in memory.
    sha256: hash of its size and RGB pixels, equal for equal pictures whatever the file format.
    """

    image: Image.Image
    path: str | None
    sha256: str

    def to_dict(self) -> dict[str, str | None]:
        """JSON form: path and hash."""
        return {"path": self.path, "sha256": self.sha256}


def open_reference(source: Any) -> Reference:
    """Open whatever `open_image` takes; ValueError with one sentence if it is no usable picture."""
    if isinstance(source, Reference):
        return source
    image = open_image(source)
    path = os.path.abspath(source) if isinstance(source, (str, os.PathLike)) else None
    return Reference(image, path, pixels_sha256(image))


def open_request(request: Request) -> Request:
    """The request with every image of its subjects, and every region that is a mask image, opened.

    Raises:
        ValueError: a subject's word does not stand in the prompt, or a picture cannot be used; all that can be known
            about a request without a model.
    """
    check_request(request)
    subjects = {word: _open_subject(subject) for word, subject in request.subjects.items()}
    return replace(request, subjects=subjects)


def check_request(request: Request) -> None:
    """Refuse what can be known to be wrong without pictures and without a model.

    Raises:
        ValueError: there is no such preset, the prompt mentions a character that was not read, or a subject's word does
            not stand in the prompt, whose words it names.
    """
    preset_named(request.preset)
    check_mentions(request.prompt)
    for word in request.subjects:
        target_spans(request.prompt, word)


def request_record(request: Request) -> dict[str, Any]:
    """JSON form of a request with opened references: `Request.to_dict`, with path and hash for every picture."""
    record = replace(request, subjects={}).to_dict()
    record["subjects"] = {word: _subject_record(subject) for word, subject in request.subjects.items()}
    return record


def request_from_record(record: Mapping[str, Any], beside: str | os.PathLike | None = None) -> Request:
    """The inverse of `request_record`: finds and opens every picture and compares its hash.

    Args:
        record: what `request_record` gave.
        beside: a folder searched for the file's name when its recorded path is gone.

    Raises:
        ValueError: a picture was given in memory, is missing or shows something else than then.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("subjects", {}), Mapping):
        raise ValueError("The recorded settings are damaged: they are no request.")
    subjects = {}
    for word, entry in record.get("subjects", {}).items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("images"), list):
            raise ValueError(f'The recorded settings are damaged: the subject "{word}" has no images.')
        images = [_reopen(image, word, beside) for image in entry["images"]]
        region = entry.get("region")
        region = _reopen(region, word, beside) if isinstance(region, Mapping) else region
        subjects[word] = {**entry, "images": images, "region": region}
    return Request.from_dict({**record, "subjects": subjects})


def _open_subject(subject: Subject) -> Subject:
    region = subject.region
    if region is not None and not isinstance(region, tuple):
        region = open_reference(region)
    return replace(subject, images=tuple(open_reference(image) for image in subject.images), region=region)


def _subject_record(subject: Subject) -> dict[str, Any]:
    region = subject.region
    return {
        "images": [image.to_dict() for image in subject.images],
        "strength": subject.strength,
        "region": region.to_dict() if isinstance(region, Reference) else region,
        "weights": None if subject.weights is None else list(subject.weights),
    }


def _reopen(record: Any, word: str, beside: str | os.PathLike | None) -> Reference:
    path = record.get("path") if isinstance(record, Mapping) else None
    if not isinstance(path, str):
        raise ValueError(f'The reference of "{word}" was given in memory, so it cannot be found again.')
    candidates = [Path(path)]
    if beside is not None:
        candidates.append(Path(beside) / Path(path).name)
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise ValueError(f'The reference of "{word}" is missing: {path}.')
    reference = open_reference(found)
    if reference.sha256 != record.get("sha256"):
        raise ValueError(f'The reference of "{word}" has changed since the image was made: {found}.')
    return reference

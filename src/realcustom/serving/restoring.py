"""From the settings stored in a PNG back to the fields of a request; what the server lacks is named."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from typing import Any

from realcustom.engine.requests import MASK_FIELDS, Place, replaced_pictures, what_at
from realcustom.pictures.png import portable
from realcustom.types import REFUSED, Request, Subject

MOST_PICTURES = 256  # of one request that are looked up
DAMAGED = "This picture carries damaged settings."

Find = Callable[[str, bool], str | None]
"""(hash of what a picture shows, whether it is read as a mask) -> its id."""


@dataclass(frozen=True)
class MissingPicture:
    """A picture of a request that the server does not have.

    place: where it stands in the request: ("subjects", "dog", "images", 0).
    name: of the file it was read from, or None.
    sha256: hash of what it shows (`realcustom.pictures.content.pixels_sha256`); it stands in its place.
    size: its width and height in pixels, where they are known.
    sentence: says so.
    """

    place: Place
    name: str | None
    sha256: str
    size: tuple[int, int] | None
    sentence: str


@dataclass(frozen=True)
class Restored:
    """What a picture was made of.

    fields: those of `Service.submit`; every picture by its id or, where it is missing, by the hash of what it shows, so
        that the very same fields are right once it is uploaded.
    missing: the pictures that are not on this server.
    notes: what else is not as it was, in sentences.
    """

    fields: dict[str, Any]
    missing: tuple[MissingPicture, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        missing = [asdict(entry) for entry in self.missing]
        return {"request": self.fields, "missing": missing, "notes": list(self.notes)}


def restore(record: Mapping[str, Any], find: Find, source: Mapping[str, Any]) -> Restored:
    """The fields of a request from the settings stored with its image.

    Args:
        record: the settings: {"request": ..., "model": ...}.
        find: the id of a picture, or None.
        source: what this server's images are made with, as `Engine.source`.

    Raises:
        ValueError: the settings are damaged.
    """
    missing: list[MissingPicture] = []
    try:
        stored, unknown = _known(record["request"])
        restored = _with_ids(stored, find, missing)
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(DAMAGED) from None
    notes = [f'The setting "{name[:80]}" is not known to this version.' for name in unknown]
    notes += [f"The picture {REFUSED}"] if record.get("flagged") is True else []
    notes += _other_model(record.get("model"), portable(source))
    return Restored(Request.from_dict(restored).to_dict(), tuple(missing), tuple(notes))


def _known(request: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields of a request and its subjects that this version has, and the names of the others."""
    ours = {entry.name for entry in fields(Request)}
    of_subject = {entry.name for entry in fields(Subject)}
    unknown = [name for name in request if name not in ours]
    subjects = request.get("subjects") or {}
    unknown += [f"{word}.{name}" for word, subject in subjects.items() for name in subject if name not in of_subject]
    kept = {name: value for name, value in request.items() if name in ours}
    kept["subjects"] = {
        word: {name: value for name, value in subject.items() if name in of_subject}
        for word, subject in subjects.items()
    }
    return kept, unknown


def _with_ids(request: Mapping[str, Any], find: Find, missing: list[MissingPicture]) -> Any:
    """The request with an id in the place of every picture, wherever it stands; those not found go into `missing`."""
    count = itertools.count(1)

    def picture(value: Mapping[str, Any], place: Place) -> str:
        sha256, path, size = value["sha256"], value.get("path"), value.get("size")
        if next(count) > MOST_PICTURES or not isinstance(sha256, str) or not isinstance(path, (str, type(None))):
            raise ValueError(DAMAGED)
        found = find(sha256, place[-1] in MASK_FIELDS)
        if found is None:
            name = PurePosixPath(path or "").name or None
            whole = isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)
            sentence = f"{what_at(place)}{f' ({name})' if name else ''} is not on this server: upload it again."
            missing.append(MissingPicture(place, name, sha256, tuple(size) if whole else None, sentence))
        return found or sha256

    return replaced_pictures(request, picture)


def _other_model(made_with: Any, source: Mapping[str, Any]) -> list[str]:
    """A sentence where an image was made with other weights than this server's."""
    if not isinstance(made_with, Mapping) or _names(made_with) == _names(source):
        return []
    return [f"It was made with {_named(made_with)}; this server has {_named(source)}."]


def _names(model: Mapping[str, Any]) -> dict[str, Any]:
    """Places by their names alone: the same folder has another path from elsewhere."""

    def name_of(value: Any) -> Any:
        if isinstance(value, list):
            return [name_of(part) for part in value]
        return PurePosixPath(value).name if isinstance(value, str) else value

    return {name: name_of(value) for name, value in model.items() if value is not None}


def _named(model: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:80]}" for name, value in _names(model).items()) or "an unnamed model"

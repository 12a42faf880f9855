"""From the settings stored in a PNG back to the fields of a request; what the server lacks is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from typing import Any

from realcustom.pictures.png import portable
from realcustom.types import REFUSED, Request, Subject

MOST_PICTURES = 256  # of one request that are looked up
DAMAGED = "This picture carries damaged settings."

Place = tuple[str | int, ...]


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


def restore(record: Mapping[str, Any], find: Callable[[str], str | None], source: Mapping[str, Any]) -> Restored:
    """The fields of a request from the settings stored with its image.

    Args:
        record: the settings: {"request": ..., "model": ...}.
        find: the id of a picture by the hash of what it shows, or None.
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


def _with_ids(request: Mapping[str, Any], find: Callable[[str], str | None], missing: list[MissingPicture]) -> Any:
    """The request with an id in the place of every picture, wherever it stands; those not found go into `missing`."""
    count = 0

    def replaced(value: Any, place: Place) -> Any:
        nonlocal count
        if isinstance(value, Mapping) and "sha256" in value:
            count += 1
            if count > MOST_PICTURES:
                raise ValueError(DAMAGED)
            return picture(value, place)
        if isinstance(value, Mapping):
            return {name: replaced(part, (*place, name)) for name, part in value.items()}
        if isinstance(value, list):
            return [replaced(part, (*place, index)) for index, part in enumerate(value)]
        return value

    def picture(value: Mapping[str, Any], place: Place) -> str:
        sha256, path, size = value["sha256"], value.get("path"), value.get("size")
        if not isinstance(sha256, str) or not isinstance(path, (str, type(None))):
            raise ValueError(DAMAGED)
        found = find(sha256)
        if found is None:
            name = PurePosixPath(path or "").name or None
            whole = isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)
            sentence = f"{_what(place)}{f' ({name})' if name else ''} is not on this server: upload it again."
            missing.append(MissingPicture(place, name, sha256, tuple(size) if whole else None, sentence))
        return found or sha256

    return replaced(request, ())


def _what(place: Place) -> str:
    """What a picture at a place of the request is, as the beginning of a sentence."""
    if len(place) > 2 and place[0] == "subjects":
        kind = "reference" if place[2] == "images" else place[2]
        return f'The {kind} of "{place[1]}"'
    return f"The picture {place[0]}"


def _other_model(made_with: Any, source: Mapping[str, Any]) -> list[str]:
    """A sentence where an image was made with other weights than this server's."""
    if not isinstance(made_with, Mapping) or _names(made_with) == _names(source):
        return []
    return [f"It was made with {_named(made_with)}; this server has {_named(source)}."]


def _names(model: Mapping[str, Any]) -> dict[str, Any]:
    """Places by their names alone: the same folder has another path from elsewhere."""
    return {
        name: PurePosixPath(value).name if isinstance(value, str) else value
        for name, value in model.items()
        if value is not None
    }


def _named(model: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:80]}" for name, value in _names(model).items()) or "an unnamed model"

"""What can be done with a request before a model is there: find its words, open its pictures, write it down.

Needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from realcustom.encoders.prompts import PromptStyle, plain_text
from realcustom.encoders.target_word import target_spans
from realcustom.engine.characters import check_mentions
from realcustom.engine.presets import preset_named
from realcustom.pictures.content import Picture, PictureSearch, pixels_sha256
from realcustom.pictures.masks import mask_picture, open_mask
from realcustom.pictures.opening import open_image
from realcustom.types import MASK, Request, json_form

Place = tuple[str | int, ...]
MASK_FIELDS = ("region", "hole")


def open_reference(source: Any, name: str | None = None) -> Picture:
    """Open whatever `open_image` takes; ValueError with one sentence if it is no usable picture.

    name: path or URL that the source, if it is bytes, was read from.
    """
    return _reference(source, open_image, name)


def open_region(source: Any, name: str | None = None) -> Picture:
    """Open whatever `open_mask` takes as the mask of a region; otherwise as `open_reference`."""
    return _reference(source, read_mask, name)


def read_mask(source: Any) -> Image.Image:
    """The picture of a mask in the form of `Picture`."""
    return mask_picture(open_mask(source))


def opened(picture: Any, kind: str, what: str, name: str | None = None) -> Picture:
    """A picture of a request as `Request.with_pictures` visits it, opened for its kind."""
    return (open_region if kind == MASK else open_reference)(picture, name)


def open_request(request: Request) -> Request:
    """The request with every image of its subjects, and every region that is a mask image, opened.

    Raises:
        ValueError: a subject's word does not stand in the prompt, or a picture cannot be used; all that can be known
            about a request without a model.
    """
    check_request(request)
    return request.with_pictures(opened)


def check_request(request: Request) -> None:
    """Refuse what can be known to be wrong without pictures and without a model.

    Raises:
        ValueError: there is no such preset, the prompt mentions a character that was not read, or a subject's word does
            not stand in the prompt, whose words it names.
    """
    preset_named(request.preset)
    check_mentions(request.prompt)
    prompt = plain_text(request.prompt, style_of_request(request))
    for word in request.subjects:
        target_spans(prompt, word)


def style_of_request(request: Request) -> PromptStyle:
    """How the prompts of a request are read."""
    return PromptStyle(long=request.long_prompt, weighted=request.prompt_weights)


def request_record(request: Request) -> dict[str, Any]:
    """JSON form of a request with opened references: `Request.to_dict`, with path and hash for every picture."""
    return json_form(request.with_pictures(lambda reference, *_: reference.to_dict()))


def request_from_record(
    record: Mapping[str, Any],
    beside: str | os.PathLike | None = None,
    folders: Sequence[str | os.PathLike] = (),
    elsewhere: Callable[[str | None, str], Any] = lambda path, sha256: None,
) -> Request:
    """The inverse of `request_record`: finds every picture by what it shows, and opens it.

    A picture is looked for at its recorded path, from the working directory and from `beside`; then under any name in
    `beside` and in `folders` with all below them; then `elsewhere`.

    Args:
        record: what `request_record` gave.
        beside: the folder of the image that the record is of.
        folders: where its pictures may have gone.
        elsewhere: a source for `open_reference` by recorded path and hash; None if it knows of none.

    Raises:
        ValueError: names all pictures that are missing, or show something else than then.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("subjects", {}), Mapping):
        raise ValueError("The recorded settings are damaged: they are no request.")
    near = [] if beside is None else [Path(beside)]
    search = PictureSearch([Path(folder) for folder in folders], near)
    lost = []

    def reopened(entry: Mapping[str, Any], place: Place) -> Picture | None:
        read = read_mask if place[-1] in MASK_FIELDS else open_image
        try:
            return _reopen(entry, what_at(place), search, elsewhere, read)
        except LookupError as error:
            lost.append(str(error.args[0]))

    subjects = record.get("subjects", {})
    for word, entry in subjects.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("images"), list):
            raise ValueError(f'The recorded settings are damaged: the subject "{word}" has no images.')
    complete = replaced_pictures(record, reopened)
    if lost:
        raise ValueError(" ".join(lost))
    return Request.from_dict(complete).with_pictures(_hashed)


def _hashed(picture: Any, _: str, what: str) -> Picture:
    """A picture that was recorded with its hash: a bare path would open whatever lies there."""
    if not isinstance(picture, Picture):
        raise ValueError(f"The recorded settings are damaged: {what} has no hash.")
    return picture


def replaced_pictures(record: Any, replace_one: Callable[[Mapping[str, Any], Place], Any], place: Place = ()) -> Any:
    """A request's JSON form with `replace_one(record, place)` for the record of every picture, wherever it stands.

    place: the way to it: ("subjects", "dog", "images", 0).
    """
    if isinstance(record, Mapping) and "sha256" in record:
        return replace_one(record, place)
    if isinstance(record, Mapping):
        return {name: replaced_pictures(part, replace_one, (*place, name)) for name, part in record.items()}
    if isinstance(record, list):
        return [replaced_pictures(part, replace_one, (*place, index)) for index, part in enumerate(record)]
    return record


def what_at(place: Place) -> str:
    """What the picture at a place of a request is, as the beginning of a sentence."""
    if len(place) > 2 and place[0] == "subjects":
        return f'The {"reference" if place[2] == "images" else place[2]} of "{place[1]}"'
    return {"image": "The start picture", "hole": "The hole", "controls": "A control picture"}.get(
        place[0] if place else None, "A picture"
    )


def with_stand_ins(request: Request) -> Request:
    """The request with a grey picture, or a mask white on its right, in the place of every picture, as large as it
    where it is opened: what a model says against a request can be known without its pictures."""

    def stand_in(picture: Any, kind: str, _: str) -> Picture:
        width, height = picture.image.size if isinstance(picture, Picture) else (64, 64)
        image = Image.new("RGB", (width, height), (0, 0, 0) if kind == MASK else (128, 128, 128))
        if kind == MASK:
            image.paste((255, 255, 255), (width // 2, 0, width, height))
        return Picture(image, None, "")

    return request.with_pictures(stand_in)


def parts_of(request: Request, size: int) -> Iterator[Request]:
    """Requests of at most `size` images that together make the images of one, in their order."""
    for start in range(0, request.num_images, size):
        count = min(size, request.num_images - start)
        yield replace(request, seed=request.image_seed(start), num_images=count)


def _reference(source: Any, read: Callable[[Any], Image.Image], name: str | None) -> Picture:
    if isinstance(source, Picture):
        return source
    try:
        image = read(source)
    except ValueError as error:
        if name is None:
            raise
        raise ValueError(str(error).replace("the given image data", name)) from error
    path = name or (os.path.abspath(source) if isinstance(source, (str, os.PathLike)) else None)
    return Picture(image, path, pixels_sha256(image))


def _reopen(
    record: Any, what: str, search: PictureSearch, elsewhere: Callable, read: Callable[[Any], Image.Image]
) -> Picture:
    """The picture of a record; LookupError with a sentence if it is not found."""
    sha256 = record.get("sha256") if isinstance(record, Mapping) else None
    path = record.get("path") if isinstance(record, Mapping) else None
    if not isinstance(sha256, str) or not isinstance(path, (str, type(None))):
        raise ValueError(f"The recorded settings are damaged: {what} has no hash.")
    changed = None
    for candidate in _recorded_places(path, search):
        try:
            image = read(candidate)
        except ValueError:
            image = None
        if image is not None and pixels_sha256(image) == sha256:
            return Picture(image, os.path.abspath(candidate), sha256)
        changed = candidate
    size = record.get("size")
    found = search.find(sha256, Path(path or "").name, tuple(size) if isinstance(size, list) else None, read)
    if found is not None:
        return Picture(found[1], os.path.abspath(found[0]), sha256)
    source = elsewhere(path, sha256)
    if source is not None:
        image = read(source)
        if pixels_sha256(image) == sha256:
            return Picture(image, str(source) if isinstance(source, Path) else path, sha256)
        changed = path
    if changed is not None:
        raise LookupError(f"{what} has changed since the image was made: {changed}.")
    if path is None:
        raise LookupError(f"{what} was given in memory, and no picture here shows the same.")
    raise LookupError(f"{what} is missing: {path}; no picture here shows the same.")


def _recorded_places(path: str | None, search: PictureSearch) -> list[Path]:
    """The files that a recorded path may mean."""
    if path is None or "://" in path:
        return []
    whole = Path(os.path.expanduser(path))
    places = [whole, *(folder / whole for folder in search.beside)]
    return [place for place in dict.fromkeys(places) if place.is_file()]

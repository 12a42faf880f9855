"""HTTP bodies to plain records, with their pictures put into the store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from realcustom.serving.base64_text import decode_base64, is_base64
from realcustom.serving.blobs import ID
from realcustom.serving.limits import TooLarge
from realcustom.serving.service import Service

FILES = 32  # of a multipart body
FIELDS = 64  # other parts of it


@contextmanager
def refusing() -> Iterator[None]:
    """A user's mistake, a ValueError wherever it is noticed, becomes a 422 with its sentence."""
    try:
        yield
    except TooLarge:
        raise
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


def is_form(request: Request) -> bool:
    """Whether a body is multipart."""
    return request.headers.get("content-type", "").startswith("multipart/form-data")


async def read_form(request: Request, files: int = FILES) -> list[tuple[str, str | bytes]]:
    """The parts of a multipart body in their order, files as bytes; HTTPException 400 where it cannot be read."""
    try:
        async with request.form(max_files=files, max_fields=FIELDS) as form:
            return [
                (name, await part.read() if isinstance(part, UploadFile) else part) for name, part in form.multi_items()
            ]
    except (MultiPartException, HTTPException, KeyError, UnicodeDecodeError) as error:
        raise HTTPException(400, "The multipart body cannot be read.") from error


async def read_json(request: Request) -> dict[str, Any]:
    """The record of fields in a JSON body; HTTPException 400 or 422 where there is none."""
    return await run_in_threadpool(_json, await request.body())


async def read_record(request: Request, service: Service) -> dict[str, Any]:
    """The JSON of a body, or of the part "request" of a multipart one; its pictures are replaced by their ids.

    Raises:
        HTTPException: 400 where it cannot be read, 422 where a picture is none.
        TooLarge: too many bytes or pixels.
    """
    files: dict[str, bytes] = {}
    if is_form(request):
        form = dict(await read_form(request))
        if "request" not in form:
            raise HTTPException(400, 'The multipart body needs a part named "request" with the settings as JSON.')
        record = await run_in_threadpool(_json, form["request"])
        files = {name: part for name, part in form.items() if isinstance(part, bytes)}
    else:
        record = await read_json(request)
    with refusing():
        return await run_in_threadpool(store_pictures, record, files, service)


async def read_picture(request: Request) -> bytes:
    """The bytes of an uploaded picture: the body itself, or the first file of a multipart one; 400 without one."""
    if not is_form(request):
        return await request.body()
    for _, part in await read_form(request, files=1):
        if isinstance(part, bytes):
            return part
    raise HTTPException(400, "The multipart body holds no file.")


def store_pictures(record: dict[str, Any], files: Mapping[str, bytes], service: Service) -> dict[str, Any]:
    """The record of a request or of a character with every picture as an id of the store.

    Raises:
        ValueError: a picture is none, is too large, or is not there.
    """

    def put(source: Any, as_mask: bool = False) -> Any:
        return _stored(source, files, service, as_mask)

    def put_all(sources: Any) -> Any:
        return [put(source) for source in sources] if isinstance(sources, list) else put(sources)

    record = dict(record)
    for name in ("images", "faces", "image"):
        if record.get(name) is not None:
            record[name] = put_all(record[name])
    if isinstance(record.get("hole"), str):
        record["hole"] = put(record["hole"], as_mask=True)
    if isinstance(record.get("controls"), list):
        record["controls"] = [
            {**control, "image": put(control["image"])} if isinstance(control, dict) and "image" in control else control
            for control in record["controls"]
        ]
    if isinstance(record.get("subjects"), dict):
        record["subjects"] = {
            word: {
                **subject,
                **({"images": put_all(subject["images"])} if "images" in subject else {}),
                **({"region": put(subject["region"], as_mask=True)} if isinstance(subject.get("region"), str) else {}),
            }
            if isinstance(subject, dict)
            else put_all(subject)
            for word, subject in record["subjects"].items()
        }
    return record


def _stored(source: Any, files: Mapping[str, bytes], service: Service, as_mask: bool) -> str:
    if not isinstance(source, str):
        raise ValueError(
            "A picture must be given by its id, as base64 or a data: URL, or as the name of a file in the request."
        )
    if source in files:
        return service.store.add_upload(files[source], service.limits)["id"]
    if source[:5].lower() == "data:" or (not ID.fullmatch(source) and is_base64(source)):
        return service.store.add_upload(decode_base64(source), service.limits)["id"]
    if not ID.fullmatch(source):
        raise ValueError(f'"{source[:80]}" is neither the id of a picture nor the name of a file in this request.')
    return service.store.id_of(source, as_mask)


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "The body is not valid JSON.") from error
    if not isinstance(record, dict):
        raise HTTPException(422, "A request must be a record of fields.")
    return record

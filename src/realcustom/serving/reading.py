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

FILES = 32  # parts of a multipart body


@contextmanager
def refusing() -> Iterator[None]:
    """A user's mistake, a ValueError wherever it is noticed, becomes a 422 with its sentence."""
    try:
        yield
    except TooLarge:
        raise
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


async def read_record(request: Request, service: Service) -> dict[str, Any]:
    """The JSON of a body, or of the part "request" of a multipart one; its pictures are replaced by their ids.

    Raises:
        HTTPException: 400 where it cannot be read, 422 where a picture is none.
        TooLarge: too many bytes or pixels.
    """
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        try:
            async with request.form(max_files=FILES, max_fields=FILES) as form:
                text = form.get("request")
                if isinstance(text, UploadFile):
                    text = await text.read()
                files = {name: await part.read() for name, part in form.items() if isinstance(part, UploadFile)}
        except (MultiPartException, HTTPException, KeyError, UnicodeDecodeError) as error:
            raise HTTPException(400, "The multipart body cannot be read.") from error
        if text is None:
            raise HTTPException(400, 'The multipart body needs a part named "request" with the settings as JSON.')
    else:
        text, files = await request.body(), {}
    record = await run_in_threadpool(_json, text)
    with refusing():
        return await run_in_threadpool(store_pictures, record, files, service)


async def read_picture(request: Request) -> bytes:
    """The bytes of an uploaded picture: the body itself, or the first file of a multipart one; 400 without one."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.body()
    try:
        async with request.form(max_files=1, max_fields=FILES) as form:
            for part in form.values():
                if isinstance(part, UploadFile):
                    return await part.read()
    except (MultiPartException, HTTPException, KeyError, UnicodeDecodeError) as error:
        raise HTTPException(400, "The multipart body cannot be read.") from error
    raise HTTPException(400, "The multipart body holds no file.")


def store_pictures(record: dict[str, Any], files: Mapping[str, bytes], service: Service) -> dict[str, Any]:
    """The record with every picture of its subjects, images and faces as an id of the store.

    Raises:
        ValueError: a picture is none, is too large, or is not there.
    """

    def put(source: Any) -> Any:
        return _stored(source, files, service)

    def put_all(sources: Any) -> Any:
        return [put(source) for source in sources] if isinstance(sources, list) else put(sources)

    record = dict(record)
    for name in ("images", "faces"):
        if name in record:
            record[name] = put_all(record[name])
    if isinstance(record.get("subjects"), dict):
        record["subjects"] = {
            word: {
                **subject,
                **({"images": put_all(subject["images"])} if "images" in subject else {}),
                **({"region": put(subject["region"])} if isinstance(subject.get("region"), str) else {}),
            }
            if isinstance(subject, dict)
            else put_all(subject)
            for word, subject in record["subjects"].items()
        }
    return record


def _stored(source: Any, files: Mapping[str, bytes], service: Service) -> str:
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
    return service.store.id_of(source)


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "The body is not valid JSON.") from error
    if not isinstance(record, dict):
        raise HTTPException(422, "A request must be a record of fields.")
    return record

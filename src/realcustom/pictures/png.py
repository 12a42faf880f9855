"""PNG files that can be made again: settings in a text chunk, written whole or not at all. Needs no torch."""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

KEY = "realcustom"


def write_png(path: str | os.PathLike, image: Image.Image, metadata: Mapping[str, Any] | None = None) -> None:
    """Write `image` as PNG, with `metadata` as JSON under the text key "realcustom"; as `write_whole`."""
    write_whole(path, png_bytes(image, metadata))


def png_bytes(image: Image.Image, metadata: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of a PNG file of `image`, with `metadata` as JSON under the text key "realcustom"."""
    info = PngInfo()
    if metadata is not None:
        info.add_text(KEY, json.dumps(metadata, allow_nan=False))
    stream = io.BytesIO()
    image.save(stream, format="PNG", pnginfo=info)
    return stream.getvalue()


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Write a file that appears under its name only when it is complete; one already there stays until then."""
    path = Path(path)
    # mkstemp would make the file private; a plain open follows the user's umask.
    temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The settings that `write_png` stored.

    Raises:
        ValueError: the file is missing, no PNG, or carries no settings.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            text = getattr(image, "text", {}).get(KEY)
    except Exception as error:  # decoders raise many types on damaged data
        raise ValueError(f"{path} is not a PNG file that can be read.") from error
    if text is None:
        raise ValueError(f"{path} carries no settings of realcustom: it was not made by it, or a program removed them.")
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"The settings in {path} are damaged.") from error
    if not isinstance(record, dict) or "request" not in record or "model" not in record:
        raise ValueError(f"The settings in {path} are damaged.")
    return record

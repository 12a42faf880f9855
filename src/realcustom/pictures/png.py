"""PNG files that can be made again: settings in a text chunk, written whole or not at all. Needs no torch."""

from __future__ import annotations

import io
import json
import os
import secrets
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from PIL import Image
from PIL.PngImagePlugin import PngInfo

KEY = "realcustom"
PLACES = {"path", "model", "adapter"}
PERCEPTUAL = 0  # rendering intent


def write_png(
    path: str | os.PathLike, image: Image.Image, metadata: Mapping[str, Any] | None = None, replace: bool = True
) -> None:
    """Write `image` as PNG, with `metadata` as JSON under the text key "realcustom"; as `write_whole`."""
    write_whole(path, png_bytes(image, metadata), replace)


def png_bytes(image: Image.Image, metadata: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of a PNG file of `image`, with `metadata` as JSON under the text key "realcustom".

    The metadata are written as `portable` gives them. A picture in colour says that it is sRGB (chunk sRGB, and gAMA
    for old readers, PNG specification 11.3.2).
    """
    info = PngInfo()
    if getattr(image, "mode", None) == "RGB":
        info.add(b"sRGB", bytes([PERCEPTUAL]))
        info.add(b"gAMA", struct.pack(">I", round(100_000 / 2.2)))
    if metadata is not None:
        info.add_text(KEY, json.dumps(portable(metadata), allow_nan=False))
    stream = io.BytesIO()
    image.save(stream, format="PNG", pnginfo=info)
    return stream.getvalue()


def portable(record: Any, key: str = "") -> Any:
    """A JSON record with `portable_path` of every place that it holds, under the keys in `PLACES`."""
    if isinstance(record, Mapping):
        return {name: portable(value, name) for name, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [portable(value, key) for value in record]
    return portable_path(record) if key in PLACES and isinstance(record, str) else record


def portable_path(path: str) -> str:
    """A path as it may travel within a picture: relative to the working directory, or to the home folder as ~.

    Of a path that shares only the root with both the name is left; of a URL, what may be a password or a token is not.
    """
    if "://" in path:
        parts = urlsplit(path)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    if not os.path.isabs(path):
        return path
    here, home = os.getcwd(), os.path.expanduser("~")
    if os.path.commonpath([home, path]) == home != os.path.commonpath([here, path]):
        return f"~/{os.path.relpath(path, home)}"
    root = os.path.commonpath([here, path])
    return os.path.basename(path) if os.path.dirname(root) == root else os.path.relpath(path, here)


def write_whole(path: str | os.PathLike, data: bytes, replace: bool = True) -> None:
    """Write a file that appears under its name only when it is complete; one already there stays until then.

    replace: whether one already there may be replaced at all.

    Raises:
        FileExistsError: there is one, and it may not.
        OSError: it cannot be written; `filename` is the path.
    """
    path = Path(path)
    # mkstemp would make the file private; a plain open follows the user's umask.
    temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            _move_to_free_name(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # A write that fails for want of room names no file, and this one's name is not the user's.
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise


def _move_to_free_name(temporary: Path, path: Path) -> None:
    """Rename; FileExistsError if there is a file, however recent."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        os.replace(temporary, path)
    else:
        os.unlink(temporary)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The settings that `write_png` stored.

    Raises:
        ValueError: the file is missing, no PNG, or carries no settings.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder, not a PNG file.")
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    return metadata_of(Path(path).read_bytes(), str(path))


def metadata_of(data: bytes, name: str) -> dict[str, Any]:
    """The settings in the bytes of a PNG file; ValueError that names the file as `read_metadata`."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            text = getattr(image, "text", {}).get(KEY)
    except Exception as error:  # decoders raise many types on damaged data
        raise ValueError(f"{name} is not a PNG file that can be read.") from error
    if text is None:
        raise ValueError(f"{name} carries no settings of realcustom: it was not made by it, or a program removed them.")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} carries damaged settings.") from error
    if not isinstance(record, dict) or "request" not in record or "model" not in record:
        raise ValueError(f"{name} carries damaged settings.")
    return record

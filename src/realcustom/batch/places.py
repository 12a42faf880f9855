"""Local paths and fsspec URLs (s3://bucket/key, gs://, memory:// ...) read and written the same way."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from realcustom.pictures.png import write_whole

DOWNLOAD_SECONDS = 30  # without an answer
MAX_DOWNLOAD = 256 * 2**20


def is_url(place: str) -> bool:
    """Whether the place is reached through fsspec rather than the local file system."""
    return "://" in place


def absolute(place: str, folder: str = "") -> str:
    """The place as every process of every machine reads it: URLs stay, file:// and paths become absolute paths.

    folder: where a relative path starts; the working directory if empty.

    Raises:
        ValueError: the place is empty.
    """
    if not place.strip():
        raise ValueError("A path is empty.")
    if place.startswith("~"):
        place = os.path.expanduser(place)
    if place.startswith("file://"):
        return unquote(urlsplit(place).path)
    if is_url(place):
        return place
    if is_url(folder) and not os.path.isabs(place):
        return join(folder, place)
    return os.path.abspath(os.path.join(folder, place))


def join(folder: str, name: str) -> str:
    """The place of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def parent(place: str) -> str:
    """The folder that holds a file."""
    return place.rsplit("/", 1)[0] if is_url(place) else os.path.dirname(place)


def read_bytes(place: str) -> bytes:
    """The content of a file; ValueError with one sentence if it is missing or cannot be read."""
    try:
        if place.startswith(("http://", "https://")):
            return _download(place)
        if is_url(place):
            system, path = _system(place)
            return system.cat_file(path)
        return Path(place).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"There is no file {place}.") from error
    except IsADirectoryError as error:
        raise ValueError(f"{place} is a folder, not a file.") from error
    except ValueError:
        raise
    except Exception as error:  # every store has its own errors
        raise ValueError(f"{place} cannot be read: {_reason(error)}.") from error


def _download(place: str) -> bytes:
    """The content behind an http address; fsspec would need packages for it that are not ours."""
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    try:
        # Some hosts turn away Python's own name.
        with urlopen(Request(place, headers={"User-Agent": "realcustom"}), timeout=DOWNLOAD_SECONDS) as answer:
            data = answer.read(MAX_DOWNLOAD + 1)
    except HTTPError as error:
        raise ValueError(f"{place} cannot be read: the server answers {error.code} {error.reason}.") from error
    except URLError as error:
        raise ValueError(f"{place} cannot be read: {_reason(error.reason)}.") from error
    if len(data) > MAX_DOWNLOAD:
        raise ValueError(f"{place} has more than {MAX_DOWNLOAD // 2**20} MiB.")
    return data


def read_all(places: Iterable[str]) -> dict[str, bytes]:
    """The contents of those of the files that can be read; many at once where the store can."""
    places = list(places)
    if places and is_url(places[0]):
        system, _ = _system(places[0])
        stripped = {system._strip_protocol(place): place for place in places}
        found = system.cat(list(stripped), on_error="omit")
        return {stripped[path]: data for path, data in found.items()}
    contents = {}
    for place in places:
        try:
            contents[place] = Path(place).read_bytes()
        except OSError:
            continue
    return contents


def names_in(folder: str) -> set[str]:
    """The names of the files in a folder; none if there is no such folder.

    Raises:
        ValueError: it is a file, or the store cannot be reached.
    """
    try:
        if folder.startswith(("http://", "https://")):
            return set()  # `make_folder` has the sentence
        if is_url(folder):
            system, path = _system(folder)
            return {entry.rstrip("/").rsplit("/", 1)[-1] for entry in system.ls(path, detail=False)}
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
    except NotADirectoryError as error:
        raise ValueError(f"{folder} is a file; --out names a folder.") from error
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{folder} cannot be read: {_reason(error)}.") from error


def make_folder(folder: str) -> None:
    """Make a folder where there is none, and refuse one that cannot be written to, before any work is done.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    try:
        if folder.startswith(("http://", "https://")):
            raise ValueError(f"Nothing can be written to the web address {folder}; name a folder or a store.")
        if is_url(folder):
            system, path = _system(folder)
            system.makedirs(path, exist_ok=True)
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
    except ValueError:
        raise
    except FileExistsError as error:
        raise ValueError(f"{folder} is a file; --out names a folder.") from error
    except Exception as error:
        raise ValueError(f"The folder {folder} cannot be made: {_reason(error)}.") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"There is no permission to write in {folder}.")


@contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Hold a local folder against another run of this machine, which would do the same work twice; nothing at a URL.

    Raises:
        ValueError: another run holds it.
    """
    if is_url(folder):
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        # The folder itself, so that no file is left in it; the system gives it back however the process ends.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"Another batch works in {folder}: wait for its end, or choose another --out.") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)


def write_bytes(place: str, data: bytes) -> None:
    """Write a file that appears whole or not at all: renamed into place locally, one put in an object store."""
    if is_url(place):
        system, path = _system(place)
        system.pipe_file(path, data)
    else:
        write_whole(place, data)


def exists(place: str) -> bool:
    """Whether there is a file."""
    if is_url(place):
        system, path = _system(place)
        return system.exists(path)
    return os.path.exists(place)


def remove(place: str) -> None:
    """Remove a file if it is there."""
    if not is_url(place):
        Path(place).unlink(missing_ok=True)
    elif exists(place):
        system, path = _system(place)
        system.rm_file(path)


def _system(place: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(place)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{place} cannot be reached: {_reason(error)}.") from error


def _reason(error: Any) -> str:
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    reason = reason.splitlines()[0].rstrip(".")
    # The first word of a sentence, but no name such as HTTPFileSystem or I/O.
    return reason[0].lower() + reason[1:] if reason[1:2].islower() or reason[1:2] == " " else reason

"""Files by what they hold: written whole or not at all, never changed, found by the SHA-256 of their bytes."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from pathlib import Path

ID = re.compile(r"[0-9a-f]{64}")


class NotHere(LookupError):
    """There is nothing under a name; says so in one sentence."""


class Blobs:
    """A folder of files FOLDER/ab/abcd....SUFFIX."""

    def __init__(self, folder: Path, suffix: str, what: str):
        self.folder = Path(folder)
        self.suffix = suffix
        self.what = what
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def put(self, data: bytes) -> str:
        """Keep `data`; returns its id. On disk, and found again after a crash, when this returns."""
        name = hashlib.sha256(data).hexdigest()
        path = self._path(name)
        if not self.intact(name):
            write_file(path, data)
            _sync_folder(path.parent)
        return name

    def intact(self, name: str) -> bool:
        """Whether the file of an id is there and whole: a disk may have lost or cut it."""
        try:
            return hashlib.sha256(self._path(name).read_bytes()).hexdigest() == name
        except OSError:
            return False

    def has(self, name: str) -> bool:
        """Whether there is a file of an id."""
        return isinstance(name, str) and ID.fullmatch(name) is not None and self._path(name).is_file()

    def path(self, name: str) -> Path:
        """The file of an id; `NotHere` for anything else, so that no name ever leads out of the folder."""
        if not self.has(name):
            raise NotHere(f'There is no {self.what} "{str(name)[:80]}".')
        return self._path(name)

    def get(self, name: str) -> bytes:
        """The bytes of an id; `NotHere` if there is none, or if the disk has cut or changed them."""
        data = self.path(name).read_bytes()
        if hashlib.sha256(data).hexdigest() != name:
            raise NotHere(f'The {self.what} "{name}" is damaged on the disk of this server.')
        return data

    def remove(self, name: str) -> None:
        """Forget an id; nothing happens where there is none."""
        if ID.fullmatch(name):
            self._path(name).unlink(missing_ok=True)

    def sweep(self, seconds: float = 0.0) -> None:
        """Remove what a killed process left half-written more than `seconds` ago."""
        for path in self.folder.glob("*/.*.part"):
            if time.time() - path.stat().st_mtime >= seconds:
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}{self.suffix}"


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, to be read by its owner only; its folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """A renamed file survives a power cut only once its folder is on disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

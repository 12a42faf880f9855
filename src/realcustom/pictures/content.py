"""The one name of what a picture shows, whatever file it came from, and finding pictures by it. Needs no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from realcustom.pictures.opening import open_image

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
MOST_FILES = 20_000  # of one folder that is searched


def pixels_sha256(image: Image.Image) -> str:
    """SHA-256 over "width x height" and the RGB bytes of an RGB image."""
    return hashlib.sha256(f"{image.width} x {image.height} ".encode() + image.tobytes()).hexdigest()


@dataclass(frozen=True)
class Picture:
    """A picture that was opened, and hashed, once.

    image: upright sRGB; of a mask its grey levels in three channels.
    path: where it was read from, an absolute path or a URL; None for a picture that was given in memory.
    sha256: hash of its size and RGB pixels, equal for equal pictures whatever the file format.
    """

    image: Image.Image
    path: str | None
    sha256: str

    @classmethod
    def of(cls, source: Any) -> Picture:
        """One as it is; whatever `open_image` takes is opened and hashed."""
        if isinstance(source, cls):
            return source
        image = open_image(source)
        return cls(image, None, pixels_sha256(image))

    def to_dict(self) -> dict[str, Any]:
        """JSON form: path, hash, and width and height."""
        return {"path": self.path, "sha256": self.sha256, "size": list(self.image.size)}


class PictureSearch:
    """Pictures of some folders by what they show; every file is opened once at most.

    folders: searched with all folders below them, up to `MOST_FILES` files each.
    beside: folders searched by themselves.
    """

    def __init__(self, folders: list[Path], beside: list[Path]):
        self.folders, self.beside = folders, beside
        self._hashes: dict[tuple[Path, Callable], str | None] = {}

    def find(
        self, sha256: str, name: str, size: tuple[int, int] | None, read: Callable[[Path], Image.Image] = open_image
    ) -> tuple[Path, Image.Image] | None:
        """A file that `read` opens as pixels of this hash, and the picture; None if there is none.

        name: of a file, tried first. size: of the picture, which spares decoding others; None if it is not known.
        """
        files = sorted(self._files(), key=lambda path: path.name != name)
        for path in dict.fromkeys(files):
            if path.name != name and (path.suffix.lower() not in SUFFIXES or not _has_size(path, size)):
                continue
            if self._hashes.get((path, read), sha256) != sha256:
                continue
            try:
                image = read(path)
            except ValueError:
                self._hashes[path, read] = None
                continue
            self._hashes[path, read] = pixels_sha256(image)
            if self._hashes[path, read] == sha256:
                return path, image
        return None

    def _files(self) -> Iterator[Path]:
        for folder in self.beside:
            yield from (path for path in sorted(folder.glob("*")) if path.is_file())
        for folder in self.folders:
            found = (Path(place, name) for place, _, names in os.walk(folder) for name in sorted(names))
            yield from (path for _, path in zip(range(MOST_FILES), found, strict=False))


def _has_size(path: Path, size: tuple[int, int] | None) -> bool:
    """Whether a file's header tells of this size, perhaps lying on its side."""
    if size is None:
        return True
    try:
        with Image.open(path) as image:
            return sorted(image.size) == sorted(size)
    except Exception:  # what cannot be read, or HEIC before its plugin is loaded
        return path.suffix.lower() in (".heic", ".heif")

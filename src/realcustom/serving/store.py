"""What a server remembers: pictures, generations and characters, in one folder that survives kill -9.

FOLDER/realcustom.sqlite   jobs, characters, which pictures show the same
FOLDER/pictures/ab/...png  uploads and results by content
FOLDER/masks/ab/...npz     the guidance masks of every step
"""

from __future__ import annotations

import fcntl
import io
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from realcustom.engine.requests import Reference, pixels_sha256
from realcustom.pictures.opening import open_image
from realcustom.pictures.png import KEY
from realcustom.serving.blobs import Blobs
from realcustom.serving.limits import Limits, TooLarge, check_pixels

SCHEMA = """
CREATE TABLE IF NOT EXISTS pictures (
    id TEXT PRIMARY KEY, pixels TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, created REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS pictures_by_pixels ON pictures (pixels);
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, state TEXT NOT NULL, asked TEXT NOT NULL,
    request TEXT NOT NULL, error TEXT, images TEXT NOT NULL DEFAULT '[]', masks TEXT,
    attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, started REAL, finished REAL
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
CREATE TABLE IF NOT EXISTS characters (
    name TEXT PRIMARY KEY, record TEXT NOT NULL, created REAL NOT NULL, changed REAL NOT NULL
);
"""

DATABASE = "realcustom.sqlite"
PICTURES = "pictures"


class Store:
    """One data folder, opened by one server at a time.

    Raises:
        ValueError: the folder cannot be used, or another server uses it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._owner = open(self.folder / "lock", "w")  # noqa: SIM115 - held until the server ends
        except OSError as error:
            raise ValueError(f"The data folder {folder} cannot be used: {error.strerror}.") from error
        try:
            # The system gives the lock back when the process ends, however it ends.
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._owner.close()
            raise ValueError(f"Another server uses the data folder {folder}; give this one another --data.") from error
        self.pictures = Blobs(self.folder / PICTURES, ".png", "image")
        self.masks = Blobs(self.folder / "masks", ".npz", "mask")
        self.pictures.sweep()
        self.masks.sweep()
        self._lock = threading.RLock()
        self._database = sqlite3.connect(self.folder / DATABASE, check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(SCHEMA)

    def close(self) -> None:
        """Give the folder back."""
        with self._lock:
            self._database.close()
            self._owner.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The database within one transaction, which nothing else interrupts."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._lock:
            return self._database.execute(query, values).fetchall()

    def add_upload(self, data: bytes, limits: Limits) -> dict[str, Any]:
        """Keep an uploaded picture, whatever its format, as plain RGB; {"id", "width", "height"}.

        One that shows the same as a picture in the store is that picture.

        Raises:
            ValueError: it is no usable picture, or larger than allowed.
        """
        if len(data) > limits.upload_bytes:
            raise TooLarge(f"The picture has more than {limits.upload_bytes / 2**20:g} MiB, the most here.")
        check_pixels(data, limits)
        image = open_image(data)
        known = self.picture_showing(pixels_sha256(image))
        if known is not None:
            return {"id": known, "width": image.width, "height": image.height}
        return self.add_picture(image)

    def add_picture(self, image: Image.Image, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Keep an RGB image as PNG, with its settings if it was made here; {"id", "width", "height"}."""
        name = self.pictures.put(png_bytes(image, metadata))
        with self.transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO pictures VALUES (?, ?, ?, ?, ?)",
                (name, pixels_sha256(image), image.width, image.height, time.time()),
            )
        return {"id": name, "width": image.width, "height": image.height}

    def reference(self, name: str) -> Reference:
        """The picture of an id as a reference; it is recorded under its file name, never with a folder."""
        image = open_image(self.pictures.get(name))
        return Reference(image, f"{name}.png", pixels_sha256(image))

    def picture_showing(self, pixels: str) -> str | None:
        """The id of a picture with these pixels (`pixels_sha256`), the oldest one; None when there is none."""
        found = self.rows("SELECT id FROM pictures WHERE pixels = ? ORDER BY created LIMIT 1", pixels)
        return found[0]["id"] if found else None

    def add_masks(self, masks: Mapping[str, np.ndarray]) -> str:
        """Keep masks {word: (steps, images, h, w) in [0, 1]} in 8 bit; returns their id."""
        arrays = {f"mask{index}": np.rint(mask * 255).astype(np.uint8) for index, mask in enumerate(masks.values())}
        stream = io.BytesIO()
        np.savez_compressed(stream, words=np.array(json.dumps(list(masks))), **arrays)
        return self.masks.put(stream.getvalue())

    def read_masks(self, name: str) -> dict[str, np.ndarray]:
        """The masks of an id as floats in [0, 1]."""
        with np.load(io.BytesIO(self.masks.get(name)), allow_pickle=False) as archive:
            words = json.loads(str(archive["words"]))
            return {word: archive[f"mask{index}"].astype(np.float32) / 255 for index, word in enumerate(words)}


def png_bytes(image: Image.Image, metadata: Mapping[str, Any] | None = None) -> bytes:
    """An image as PNG, with its settings where `realcustom.pictures.png` reads them."""
    info = PngInfo()
    if metadata is not None:
        info.add_text(KEY, json.dumps(metadata, allow_nan=False))
    stream = io.BytesIO()
    image.save(stream, format="PNG", pnginfo=info)
    return stream.getvalue()

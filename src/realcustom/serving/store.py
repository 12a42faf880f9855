"""What a server remembers: pictures, generations and characters, in one folder that survives kill -9.

FOLDER/realcustom.sqlite   jobs, characters, which pictures show the same
FOLDER/pictures/ab/...png  uploads and results by content
FOLDER/masks/ab/...npz     the guidance masks of every step
"""

from __future__ import annotations

import ctypes
import fcntl
import io
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from realcustom.engine.requests import read_mask
from realcustom.pictures.colour import to_srgb
from realcustom.pictures.content import Picture, pixels_sha256
from realcustom.pictures.opening import DECODING, open_as_stored, open_image
from realcustom.pictures.png import png_bytes
from realcustom.serving.blobs import Blobs
from realcustom.serving.limits import Limits, NoRoom, TooLarge, check_pixels
from realcustom.serving.trouble import StorageTrouble, storage_trouble

SCHEMA = """
CREATE TABLE IF NOT EXISTS pictures (
    id TEXT PRIMARY KEY, pixels TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, created REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS pictures_by_pixels ON pictures (pixels);
CREATE TABLE IF NOT EXISTS read_as_masks (pixels TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (pixels, id));
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, state TEXT NOT NULL, asked TEXT NOT NULL,
    request TEXT NOT NULL, error TEXT, images TEXT NOT NULL DEFAULT '[]', masks TEXT,
    flagged TEXT NOT NULL DEFAULT '[]', owner TEXT NOT NULL DEFAULT '', priority INTEGER NOT NULL DEFAULT 0,
    key TEXT, webhook TEXT, told INTEGER NOT NULL DEFAULT 0,
    favourites TEXT NOT NULL DEFAULT '[]', trashed REAL,
    attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, started REAL, finished REAL
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
CREATE TABLE IF NOT EXISTS characters (
    name TEXT PRIMARY KEY, record TEXT NOT NULL, created REAL NOT NULL, changed REAL NOT NULL,
    owner TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS probe (id INTEGER PRIMARY KEY, at REAL NOT NULL);
"""

# Columns that folders of an earlier version lack: table, column, type.
LATER = (
    ("jobs", "flagged", "TEXT NOT NULL DEFAULT '[]'"),
    ("jobs", "owner", "TEXT NOT NULL DEFAULT ''"),
    ("jobs", "priority", "INTEGER NOT NULL DEFAULT 0"),
    ("jobs", "key", "TEXT"),
    ("jobs", "webhook", "TEXT"),
    ("jobs", "told", "INTEGER NOT NULL DEFAULT 0"),
    ("jobs", "favourites", "TEXT NOT NULL DEFAULT '[]'"),
    ("jobs", "trashed", "REAL"),
    ("characters", "owner", "TEXT NOT NULL DEFAULT ''"),
)
KEYS = "CREATE UNIQUE INDEX IF NOT EXISTS jobs_by_key ON jobs (owner, key) WHERE key IS NOT NULL"

log = logging.getLogger(__name__)

LARGE = 2**22  # pixels of a picture whose memory is worth giving back at once
ROOM = 2**20  # bytes that must be free for the folder to be called usable
DATABASE = "realcustom.sqlite"
PICTURES = "pictures"


class Store:
    """One data folder, opened by one server at a time.

    trouble: why it cannot be used at the moment, or None.
    used: bytes in it, as far as they are known: what was measured and what came since then.

    Raises:
        ValueError: the folder cannot be used, or another server uses it.
    """

    def __init__(self, folder: str | Path):
        # Without links, so that what lies in it can be told by its name.
        self.folder = Path(os.path.realpath(folder))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # What people upload and make is theirs.
            self.folder.chmod(0o700)
            # Held until the server ends.
            self._owner = os.fdopen(os.open(self.folder / "lock", os.O_CREAT | os.O_WRONLY, 0o600), "w")
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
        self.trouble: StorageTrouble | None = None
        self.used = 0
        self.measure()
        # SQLite gives its other files the mode of this one.
        os.close(os.open(self.folder / DATABASE, os.O_CREAT | os.O_WRONLY, 0o600))
        self._lock = threading.RLock()
        self._database = sqlite3.connect(self.folder / DATABASE, check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(SCHEMA)
        for table, column, kind in LATER:
            if column not in {row["name"] for row in self._database.execute(f"PRAGMA table_info({table})")}:
                self._database.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
        self._database.execute(KEYS)

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
                self._database.execute("COMMIT")
            except BaseException:
                # A full disk may have ended the transaction already, and one left open would be everybody's.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def note(self, trouble: StorageTrouble | None) -> None:
        """Remember whether the folder can be used; the log says so once at every change."""
        if str(trouble) != str(self.trouble):
            log.warning("%s", trouble or "The data folder can be used again.")
        self.trouble = trouble

    def measure(self) -> None:
        """Add up the bytes of all files."""
        total = 0
        for place, _, files in os.walk(self.folder):
            for name in files:
                with suppress(OSError):
                    total += os.lstat(os.path.join(place, name)).st_size
        self.used = total

    def check_room(self, size: int, limits: Limits) -> None:
        """NoRoom where so many more bytes are more than the folder may hold."""
        if limits.data_bytes is not None and self.used + size > limits.data_bytes:
            raise NoRoom(f"This server keeps at most {limits.data_bytes / 2**20:g} MiB; remove something first.")

    def probe(self) -> None:
        """Find out whether there is room for a picture and a record; `trouble` tells."""
        path = self.folder / ".probe.part"
        try:
            try:
                path.write_bytes(bytes(ROOM))
            finally:
                path.unlink(missing_ok=True)
            with self.transaction() as database:
                database.execute("INSERT OR REPLACE INTO probe VALUES (1, ?)", (time.time(),))
        except (OSError, sqlite3.Error) as error:
            trouble = storage_trouble(error)
            if trouble is None:
                raise
            self.note(trouble)
        else:
            self.note(None)

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._lock:
            return self._database.execute(query, values).fetchall()

    def add_upload(self, data: bytes, limits: Limits) -> dict[str, Any]:
        """Keep an uploaded picture, whatever its format, as a PNG; {"id", "width", "height"}.

        One that shows the same as a picture in the store is that picture. Transparency is kept, since a region may be
        painted with it; nothing else is beside plain RGB.

        Raises:
            ValueError: it is no usable picture, or larger than allowed.
        """
        if len(data) > limits.upload_bytes:
            raise TooLarge(f"The picture has more than {limits.upload_bytes / 2**20:g} MiB, the most here.")
        self.check_room(len(data), limits)
        pixels = check_pixels(data, limits)
        # All of it in one turn: hashing and encoding take memory as decoding does.
        with DECODING.take(pixels):
            stored, _ = open_as_stored(data)
            kept = self._keep_upload(to_srgb(stored), transparent(stored))
            if pixels <= LARGE:
                self._note_mask(kept["id"], stored)
        if pixels > LARGE:
            give_back_memory()
        return kept

    def _keep_upload(self, image: Image.Image, with_alpha: Image.Image | None = None) -> dict[str, Any]:
        if with_alpha is not None:
            return self._insert(png_bytes(with_alpha), image)
        known = self.picture_showing(pixels_sha256(image))
        if known is not None:
            # Its time begins anew.
            with self.transaction() as database:
                database.execute("UPDATE pictures SET created = ? WHERE id = ?", (time.time(), known))
            return {"id": known, "width": image.width, "height": image.height}
        return self.add_picture(image)

    def add_picture(self, image: Image.Image, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Keep an RGB image as PNG, with its settings if it was made here; {"id", "width", "height"}."""
        return self._insert(png_bytes(image, metadata), image)

    def _insert(self, data: bytes, image: Image.Image) -> dict[str, Any]:
        """Keep a PNG file that shows an RGB image."""
        name = self.pictures.put(data)
        self.used += len(data)
        with self.transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?)",
                (name, pixels_sha256(image), image.width, image.height, time.time()),
            )
        return {"id": name, "width": image.width, "height": image.height}

    def reference(self, name: str) -> Picture:
        """The picture of an id as a reference; it is recorded under its file name, never with a folder."""
        image = open_image(self.pictures.get(name))
        return Picture(image, f"{name}.png", pixels_sha256(image))

    def region(self, name: str) -> Picture:
        """The picture of an id as the mask of a region, kept as a picture of its own where it is not plain grey."""
        mask = read_mask(self.pictures.get(name))
        kept = self._keep_upload(mask)
        return Picture(mask, f"{kept['id']}.png", pixels_sha256(mask))

    def id_of(self, name: str, as_mask: bool = False) -> str:
        """The id of a picture that is named by its id or by the hash of what it shows; `name` where there is none."""
        return name if self.pictures.has(name) else self.picture_showing(name, as_mask) or name

    def picture_showing(self, pixels: str, as_mask: bool = False) -> str | None:
        """The id of a picture with these pixels (`pixels_sha256`), the oldest one; None when there is none.

        as_mask: also of one, up to `LARGE`, that has them where it is read as a mask: paint on a transparent ground.
        """
        found = self.rows("SELECT id FROM pictures WHERE pixels = ? ORDER BY created", pixels)
        if as_mask:
            found += self.rows("SELECT id FROM read_as_masks WHERE pixels = ?", pixels)
        return next((row["id"] for row in found if self.pictures.intact(row["id"])), None)

    def _note_mask(self, name: str, stored: Image.Image) -> None:
        """Remember what an upload shows where it is read as a mask, by which the settings of an image name it."""
        try:
            shown = pixels_sha256(read_mask(stored))
        except ValueError:  # it leaves no place
            return
        with self.transaction() as database:
            database.execute("INSERT OR IGNORE INTO read_as_masks VALUES (?, ?)", (shown, name))

    def add_masks(self, masks: Mapping[str, np.ndarray]) -> str:
        """Keep masks {word: (steps, images, h, w) in [0, 1]} in 8 bit; returns their id."""
        arrays = {f"mask{index}": np.rint(mask * 255).astype(np.uint8) for index, mask in enumerate(masks.values())}
        stream = io.BytesIO()
        np.savez_compressed(stream, words=np.array(json.dumps(list(masks))), **arrays)
        self.used += stream.tell()
        return self.masks.put(stream.getvalue())

    def read_masks(self, name: str) -> dict[str, np.ndarray]:
        """The masks of an id as floats in [0, 1]."""
        with np.load(io.BytesIO(self.masks.get(name)), allow_pickle=False) as archive:
            words = json.loads(str(archive["words"]))
            return {word: archive[f"mask{index}"].astype(np.float32) / 255 for index, word in enumerate(words)}


def give_back_memory() -> None:
    """Return to the system what the C library keeps of freed blocks; nothing happens where it has no such function."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def transparent(image: Image.Image) -> Image.Image | None:
    """A picture as it is stored with its transparency; None where it has none."""
    if not image.has_transparency_data:
        return None
    image = image.convert("RGBA")
    return None if image.getextrema()[3][0] == 255 else image

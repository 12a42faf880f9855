"""Reading a data folder beside the server that may be using it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from realcustom.serving.blobs import Blobs, NotHere
from realcustom.serving.store import DATABASE, PICTURES


def read_column(folder: Path, query: str, *values: str) -> list[str]:
    """The first column of a query's rows; none where there is no database. It changes nothing.

    Raises:
        ValueError: the database cannot be read.
    """
    path = folder.absolute() / DATABASE
    if not path.is_file():
        return []
    try:
        database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        try:
            return [row[0] for row in database.execute(query, values)]
        finally:
            database.close()
    except sqlite3.Error as error:
        raise ValueError(f"The data folder {folder} cannot be read: {error}.") from error


def find_picture(folder: Path, name: str, sha256: str) -> Path | None:
    """The file of a picture in a data folder, or None.

    folder: what `realcustom serve --data` was given.
    name: its id as a file name, ID.png; or any other name.
    sha256: the hash of its pixels.
    """
    if not (folder / PICTURES).is_dir():
        return None
    pictures = Blobs(folder / PICTURES, ".png", "image")
    ids = read_column(folder, "SELECT id FROM pictures WHERE pixels = ? ORDER BY created", sha256)
    for one in (name.removesuffix(".png"), *ids):
        try:
            return pictures.path(one).absolute()
        except NotHere:
            continue
    return None

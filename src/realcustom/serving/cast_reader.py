"""Reading the characters of a data folder beside the server that may be using it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from realcustom.engine.characters import Character
from realcustom.serving.blobs import Blobs, NotHere
from realcustom.serving.picture_reader import read_column
from realcustom.serving.store import PICTURES


class CastReader:
    """The characters of a data folder, with absolute paths in the place of picture ids; it changes nothing.

    folder: what `realcustom serve --data` was given. One that does not exist holds no characters.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).absolute()

    def list(self) -> list[Character]:
        """All characters by name."""
        return [
            self._read(record) for record in read_column(self.folder, "SELECT record FROM characters ORDER BY name")
        ]

    def find(self, name: str) -> Character | None:
        """The character of a name, or None; ValueError if one of its pictures is gone."""
        query = "SELECT record FROM characters WHERE name = ?"
        found = read_column(self.folder, query, str(name).lower().removeprefix("@"))
        return self._read(found[0]) if found else None

    def _read(self, record: str) -> Character:
        character = Character.from_dict(json.loads(record))
        pictures = Blobs(self.folder / PICTURES, ".png", "image")
        try:
            images, faces = (
                tuple(str(pictures.path(image)) for image in group) for group in (character.images, character.faces)
            )
        except NotHere as error:
            raise ValueError(f"A picture of @{character.name} is gone: {error}") from None
        return replace(character, images=images, faces=faces)

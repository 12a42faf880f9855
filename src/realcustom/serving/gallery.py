"""What was made, found again: by its prompt, its words, its characters; and many pictures as one ZIP file."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from realcustom.encoders.target_word import occurrence
from realcustom.engine.characters import mentions
from realcustom.pictures.overlays import slugs
from realcustom.serving.records import DONE, Job, Jobs

CHUNK = 500  # generations that are read at once
SEARCHED = 5000  # by one call; who asks goes on from there
EARLIEST = 315532800.0  # seconds since 1970: ZIP files know no time before 1980, which a clock without power may show


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is looked for; all of it must be so.

    text: every part of it, between spaces, stands in the prompt or in a word, in any case of letters.
    word: is a subject of the prompt, at whichever place. character: is mentioned, without its @.
    favourites: has a marked image. trashed: lies in the trash, where the others do not.
    """

    text: str = ""
    word: str | None = None
    character: str | None = None
    favourites: bool = False
    trashed: bool = False

    def holds(self, job: Job) -> bool:
        """Whether a generation is as it is wanted; the trash is not looked at."""
        words = list(job.request["subjects"])
        shown = " ".join([job.asked["prompt"], job.request["prompt"], *words]).casefold()
        if not all(part in shown for part in self.text.casefold().split()):
            return False
        if self.word is not None and self.word.casefold() not in {occurrence(word)[0].casefold() for word in words}:
            return False
        character = None if self.character is None else self.character.removeprefix("@").casefold()
        if character is not None and character not in {name.casefold() for name in mentions(job.asked["prompt"])}:
            return False
        return bool(job.favourites) or not self.favourites


def search(jobs: Jobs, wanted: Wanted, limit: int, before: int | None = None) -> tuple[list[Job], int | None]:
    """Finished generations as they are wanted, newest first, and the number to go on before; None at the end.

    At most `SEARCHED` are looked at, so that there may be fewer than `limit`, even none, and older ones still.
    """
    found: list[Job] = []
    for _ in range(SEARCHED // CHUNK):
        chunk = jobs.list((DONE,), CHUNK, before, wanted.trashed)
        for job in chunk:
            before = job.number
            if wanted.holds(job):
                found.append(job)
                if len(found) == limit:
                    return found, before
        if len(chunk) < CHUNK:
            return found, None
    return found, before


def file_name(job: Job, index: int) -> str:
    """How an image is called in a ZIP file: its prompt, its generation, its number."""
    prompt = job.request["prompt"]
    return f"{slugs([prompt])[prompt]}-{job.id[:12]}-{index}.png"


def zip_chunks(files: Iterable[tuple[str, float, bytes]]) -> Iterator[bytes]:
    """A ZIP file of (name, seconds since 1970, bytes), piece by piece: no more than one file is held at a time."""
    written = _Written()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:  # PNG files are packed already
        for name, moment, data in files:
            archive.writestr(zipfile.ZipInfo(name, time.gmtime(max(moment, EARLIEST))[:6]), data)
            yield written.take()
    yield written.take()


class _Written:
    """A file that is only ever written on."""

    def __init__(self):
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        self._data += data
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def take(self) -> bytes:
        """What was written since the last time."""
        data, self._data = bytes(self._data), bytearray()
        return data

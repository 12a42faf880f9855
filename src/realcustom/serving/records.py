"""Generations and characters in a server's store."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from realcustom.engine.characters import Character, checked_name
from realcustom.serving.blobs import NotHere
from realcustom.serving.holders import Forbidden, may_see, owner_name, seen_owner
from realcustom.serving.store import Store

QUEUED, RUNNING, DONE = "queued", "running", "done"
FAILED, CANCELLED, INTERRUPTED = "failed", "cancelled", "interrupted"
STATES = (QUEUED, RUNNING, DONE, FAILED, CANCELLED, INTERRUPTED)
UNFINISHED = (QUEUED, RUNNING)
MAX_ATTEMPTS = 3  # a generation that was under way at as many crashes may well be their cause


@dataclass(frozen=True, kw_only=True)
class Job:
    """One generation.

    id: 32 hex digits.
    state: one of `STATES`.
    asked: the settings as they were given, characters still by name.
    request: the settings as they are run, all pictures by id.
    error: a sentence, where it failed, was cancelled or was interrupted.
    images: ids of the finished images. flagged: for each whether the model's safety checker made it black.
    masks: id of the guidance masks, or None.
    attempts: how often it was begun.
    created, started, finished: seconds since 1970, or None.
    owner: name of the token that made it. priority: 0 to 9, see `waiting_order`.
    key: under which the client may ask for it again, or None. webhook: address that is told of its end, or None;
        told: 1 once it was, -1 where it could not be.
    favourites: indices of the images that are marked, in order.
    trashed: when it was put into the trash, in seconds since 1970, or None.
    """

    number: int
    id: str
    state: str
    asked: dict[str, Any]
    request: dict[str, Any]
    error: str | None
    images: tuple[str, ...]
    flagged: tuple[bool, ...]
    masks: str | None
    attempts: int
    created: float
    started: float | None
    finished: float | None
    owner: str = ""
    priority: int = 0
    key: str | None = None
    webhook: str | None = None
    told: int = 0
    favourites: tuple[int, ...] = ()
    trashed: float | None = None

    @property
    def finished_well(self) -> bool:
        return self.state == DONE


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is asked of the server beside the picture.

    priority: 0 to 9. key: under which the same request is one generation. webhook: address to be told of its end.
    """

    priority: int = 0
    key: str | None = None
    webhook: str | None = None


def waiting_order(job: Job) -> float:
    """Smaller is earlier: one priority more is worth a minute of waiting, so that nothing waits for ever."""
    return job.created - 60.0 * job.priority


class Jobs:
    """The generations of a store. Who asks with a token that is no admin's finds only those that it made."""

    def __init__(self, store: Store):
        self.store = store

    def add(self, asked: Mapping[str, Any], request: Mapping[str, Any], wishes: Wishes) -> Job:
        """A new generation, waiting."""
        name = secrets.token_hex(16)
        values = {
            "id": name,
            "state": QUEUED,
            "asked": json.dumps(asked),
            "request": json.dumps(request),
            "created": time.time(),
            "owner": owner_name(),
            **asdict(wishes),
        }
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        with self.store.transaction() as database:
            database.execute(f"INSERT INTO jobs ({columns}) VALUES ({marks})", tuple(values.values()))
        return self.get(name)

    def keyed(self, key: str) -> Job | None:
        """The generation that the token asking now made under a key, or None."""
        found = self.store.rows("SELECT * FROM jobs WHERE owner = ? AND key = ?", owner_name(), key)
        return _job(found[0]) if found else None

    def to_tell(self) -> list[Job]:
        """Finished generations whose webhooks have not been told, oldest first."""
        query = "SELECT * FROM jobs WHERE webhook IS NOT NULL AND told = 0 AND state NOT IN (?, ?) ORDER BY number"
        return [_job(row) for row in self.store.rows(query, *UNFINISHED)]

    def mark_told(self, name: str, told: int) -> None:
        """A webhook was told (1), or is given up (-1)."""
        with self.store.transaction() as database:
            database.execute("UPDATE jobs SET told = ? WHERE id = ?", (told, name))

    def get(self, name: str) -> Job:
        """The generation of an id; `NotHere` if there is none."""
        found = self.store.rows("SELECT * FROM jobs WHERE id = ?", str(name))
        if not found or not may_see(found[0]["owner"]):
            raise NotHere(f'There is no generation "{str(name)[:80]}".')
        return _job(found[0])

    def list(
        self, states: Sequence[str] = STATES, limit: int = 50, before: int | None = None, trashed: bool = False
    ) -> list[Job]:
        """The newest generations in these states, older than number `before`; those in the trash, or the others."""
        marks = ", ".join("?" * len(states))
        owner = seen_owner()
        query = (
            f"SELECT * FROM jobs WHERE state IN ({marks}) AND number < ? AND (? IS NULL OR owner = ?) "
            "AND (trashed IS NOT NULL) = ? ORDER BY number DESC LIMIT ?"
        )
        return [_job(row) for row in self.store.rows(query, *states, before or 2**62, owner, owner, trashed, limit)]

    def mark_favourite(self, name: str, index: int, marked: bool) -> None:
        """Mark an image of a generation, or take the mark away; NotHere if there is none."""
        with self.store.transaction() as database:
            job = self.get(name)
            if index >= len(job.images):
                raise NotHere(f"This generation has {len(job.images)} images; there is no image {index}.")
            favourites = set(job.favourites) | {index} if marked else set(job.favourites) - {index}
            values = json.dumps(sorted(favourites)), name
            database.execute("UPDATE jobs SET favourites = ? WHERE id = ?", values)

    def trash(self, name: str) -> None:
        """Put a finished generation into the trash, from which it is removed later; what lies there already stays.

        Raises:
            NotHere: there is none.
            ValueError: it is not finished.
        """
        with self.store.transaction() as database:
            _check_finished(self.get(name))
            database.execute("UPDATE jobs SET trashed = ? WHERE id = ? AND trashed IS NULL", (time.time(), name))

    def take_out(self, name: str) -> None:
        """Take a generation out of the trash; NotHere if there is none."""
        with self.store.transaction() as database:
            self.get(name)
            database.execute("UPDATE jobs SET trashed = NULL WHERE id = ?", (name,))

    def trashed_before(self, moment: float) -> list[str]:
        """Ids of what was put into the trash before a moment in seconds since 1970."""
        return [row["id"] for row in self.store.rows("SELECT id FROM jobs WHERE trashed < ?", moment)]

    def begin(self, names: Iterable[str]) -> list[Job]:
        """Mark waiting generations as running; those that wait no longer are left out."""
        begun = []
        for name in names:
            with self.store.transaction() as database:
                changed = database.execute(
                    "UPDATE jobs SET state = ?, started = ?, attempts = attempts + 1 WHERE id = ? AND state = ?",
                    (RUNNING, time.time(), name, QUEUED),
                ).rowcount
            if changed:
                begun.append(self.get(name))
        return begun

    def finish(self, name: str, images: Sequence[str], flagged: Sequence[bool], masks: str | None) -> None:
        """Mark as done, with what was made; all or nothing."""
        with self.store.transaction() as database:
            database.execute(
                "UPDATE jobs SET state = ?, images = ?, flagged = ?, masks = ?, finished = ?, error = NULL "
                "WHERE id = ? AND state = ?",
                (DONE, json.dumps(list(images)), json.dumps(list(flagged)), masks, time.time(), name, RUNNING),
            )

    def end(self, name: str, state: str, error: str) -> bool:
        """Mark an unfinished generation as failed, cancelled or interrupted; False if it was finished already."""
        with self.store.transaction() as database:
            changed = database.execute(
                "UPDATE jobs SET state = ?, error = ?, finished = ? WHERE id = ? AND state IN (?, ?)",
                (state, error, time.time(), name, *UNFINISHED),
            ).rowcount
        return bool(changed)

    def put_back(self, name: str) -> None:
        """A running generation waits again, as if it had never been begun: its server is being stopped."""
        with self.store.transaction() as database:
            database.execute(
                "UPDATE jobs SET state = ?, started = NULL, attempts = attempts - 1 WHERE id = ? AND state = ?",
                (QUEUED, name, RUNNING),
            )

    def recover(self) -> list[Job]:
        """After a restart: what is to be run, oldest first. What was under way too often is interrupted."""
        with self.store.transaction() as database:
            database.execute(
                "UPDATE jobs SET state = ?, error = ?, finished = ? WHERE state = ? AND attempts >= ?",
                (
                    INTERRUPTED,
                    f"The server ended {MAX_ATTEMPTS} times while this ran; it is not tried again.",
                    time.time(),
                    RUNNING,
                    MAX_ATTEMPTS,
                ),
            )
            database.execute("UPDATE jobs SET state = ?, started = NULL WHERE state = ?", (QUEUED, RUNNING))
        return [_job(row) for row in self.store.rows("SELECT * FROM jobs WHERE state = ? ORDER BY number", QUEUED)]

    def finished_before(self, moment: float) -> list[str]:
        """Ids of what was finished before a moment in seconds since 1970."""
        query = "SELECT id FROM jobs WHERE finished < ? AND state NOT IN (?, ?)"
        return [row["id"] for row in self.store.rows(query, moment, *UNFINISHED)]

    def counts(self) -> dict[str, int]:
        """How many generations are in each state."""
        found = {row["state"]: row["n"] for row in self.store.rows("SELECT state, count(*) n FROM jobs GROUP BY state")}
        return {state: found.get(state, 0) for state in STATES}

    def remove(self, name: str) -> None:
        """Forget a finished generation and its masks; its images go too where nothing else uses them.

        Raises:
            NotHere: there is none.
            ValueError: it is not finished.
        """
        job = self.get(name)
        _check_finished(job)
        with self.store.transaction() as database:
            database.execute("DELETE FROM jobs WHERE id = ?", (name,))
            for image in job.images:
                if not _used(database, image):
                    database.execute("DELETE FROM pictures WHERE id = ?", (image,))
                    self.store.pictures.remove(image)
            if job.masks and not database.execute("SELECT 1 FROM jobs WHERE masks = ?", (job.masks,)).fetchone():
                self.store.masks.remove(job.masks)


def _check_finished(job: Job) -> None:
    if job.state in UNFINISHED:
        raise ValueError("A generation that waits or runs cannot be removed; cancel it first.")


def forget_picture(store: Store, image: str) -> bool:
    """Remove a picture unless a generation or a character names it; whether it was removed."""
    with store.transaction() as database:
        if _used(database, image):
            return False
        # The file first: on a full disk it makes the room that the record of its removal needs.
        store.pictures.remove(image)
        database.execute("DELETE FROM pictures WHERE id = ?", (image,))
    return True


def forget_unused(store: Store, days: float) -> int:
    """Remove pictures that came more than `days` ago and that no generation and no character names; how many.

    They are uploads that were never used, or whose generations were removed.
    """
    with store.transaction() as database:
        old = database.execute("SELECT id FROM pictures WHERE created < ?", (time.time() - days * 86400,)).fetchall()
        unused = [row["id"] for row in old if not _used(database, row["id"])]
        for image in unused:
            store.pictures.remove(image)
        database.executemany("DELETE FROM pictures WHERE id = ?", [(image,) for image in unused])
        database.execute("DELETE FROM read_as_masks WHERE id NOT IN (SELECT id FROM pictures)")
    return len(unused)


class Cast:
    """The characters of a store. A token that is no admin's finds its own and those without an owner, and changes its
    own."""

    def __init__(self, store: Store):
        self.store = store

    def list(self) -> list[Character]:
        """All characters by name."""
        rows = self.store.rows("SELECT record, owner FROM characters ORDER BY name")
        return [_character(row) for row in rows if _readable(row)]

    def find(self, name: str) -> Character | None:
        """The character of a name, or None."""
        query = "SELECT record, owner FROM characters WHERE name = ?"
        found = self.store.rows(query, str(name).lower().removeprefix("@"))
        return _character(found[0]) if found and _readable(found[0]) else None

    def get(self, name: str) -> Character:
        """The character of a name; `NotHere` if there is none."""
        found = self.find(name)
        if found is None:
            raise NotHere(f"There is no character @{str(name).removeprefix('@')[:80]}.")
        return found

    def save(self, character: Character, replaces: str | None = None) -> Character:
        """Keep a new character, or put it in the place of `replaces`, whose name may change.

        Raises:
            ValueError: the name is taken.
            NotHere: there is none to replace, or one of its pictures is not in the store.
        """
        for image in (*character.images, *character.faces):
            self.store.pictures.path(image)
        replaces = None if replaces is None else checked_name(replaces)
        if replaces is not None:
            self._check_own(self.get(replaces).name)
        now, record = time.time(), json.dumps(character.to_dict())
        try:
            with self.store.transaction() as database:
                if replaces is None:
                    values = (character.name, record, now, now, owner_name())
                    database.execute("INSERT INTO characters VALUES (?, ?, ?, ?, ?)", values)
                else:
                    database.execute(
                        "UPDATE characters SET name = ?, record = ?, changed = ? WHERE name = ?",
                        (character.name, record, now, replaces),
                    )
        except sqlite3.IntegrityError:
            raise ValueError(
                f"There is a character @{character.name} already: edit it, or choose another name."
            ) from None
        return character

    def remove(self, name: str) -> None:
        """Forget a character; `NotHere` if there is none."""
        character = self.get(name)
        self._check_own(character.name)
        with self.store.transaction() as database:
            database.execute("DELETE FROM characters WHERE name = ?", (character.name,))

    def _check_own(self, name: str) -> None:
        (row,) = self.store.rows("SELECT owner FROM characters WHERE name = ?", name)
        if not may_see(row["owner"]):
            raise Forbidden(f"The character @{name} belongs to another token.")


def _readable(row: sqlite3.Row) -> bool:
    return not row["owner"] or may_see(row["owner"])


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    for name in ("asked", "request"):
        values[name] = json.loads(values[name])
    for name in ("images", "favourites"):
        values[name] = tuple(json.loads(values[name]))
    # Generations of an earlier version say nothing.
    flagged = json.loads(values["flagged"]) or [False] * len(values["images"])
    return Job(**{**values, "flagged": tuple(flagged)})


def _character(row: sqlite3.Row) -> Character:
    return Character.from_dict(json.loads(row["record"]))


def _used(database: sqlite3.Connection, image: str) -> bool:
    """Whether a job or a character names a picture; ids are hex digits, so a text search cannot mislead."""
    for query in (
        "SELECT 1 FROM jobs WHERE instr(images, ?) OR instr(request, ?)",
        "SELECT 1 FROM characters WHERE instr(record, ?1) OR instr(record, ?2)",
    ):
        if database.execute(query, (image, image)).fetchone():
            return True
    return False

"""What a benchmark is: a list of tasks and a protocol. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from realcustom.pictures.content import pixels_sha256
from realcustom.pictures.opening import open_image

Picture = Path | Image.Image


@dataclass(frozen=True, kw_only=True)
class TaskSubject:
    """One subject of a task.

    word: as it stands in the prompt. images: what the model is given. references: real pictures that the result is
    compared with. region: where the subject may be, a box in fractions of the output, or None.
    """

    word: str
    images: tuple[Picture, ...]
    references: tuple[Picture, ...]
    region: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """One image to make.

    key: its file name, unique in the benchmark. group: what was chosen independently (the subject); intervals draw
    whole groups. facts: plain JSON values that the measuring needs or the report shows. picture: that it is drawn into,
    and hole: where, a box in fractions of it; None for an image of its own.
    """

    key: str
    prompt: str
    subjects: tuple[TaskSubject, ...]
    seed: int
    group: str
    facts: dict[str, Any] = field(default_factory=dict)
    picture: Picture | None = None
    hole: tuple[float, float, float, float] | None = None

    def describe(self) -> dict[str, Any]:
        """JSON form; pictures in memory by the first digits of their hash."""
        subjects = [
            {"word": s.word, "images": [_name(picture) for picture in s.images], "region": s.region}
            for s in self.subjects
        ]
        told = {"key": self.key, "prompt": self.prompt, "seed": self.seed, "subjects": subjects, "facts": self.facts}
        return told if self.picture is None else {**told, "picture": _name(self.picture), "hole": self.hole}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """name: of the benchmark. tasks: in their order. protocol: plain JSON values that say what was done."""

    name: str
    tasks: tuple[Task, ...]
    protocol: dict[str, Any]

    def limited(self, limit: int | None) -> Benchmark:
        """The first `limit` tasks of an even walk over the groups, so that few tasks still show many subjects.

        Raises:
            ValueError: there is no task at all.
        """
        if not self.tasks:
            raise ValueError(f"The benchmark {self.name} has no task: none of its subjects was found in the data.")
        if limit is None or limit >= len(self.tasks):
            return self
        chosen = {task.key for task in round_robin(self.tasks, limit)}
        kept = tuple(task for task in self.tasks if task.key in chosen)
        return Benchmark(name=self.name, tasks=kept, protocol={**self.protocol, "limit": limit})


def round_robin(tasks: Iterable[Task], limit: int) -> list[Task]:
    """One task of every group, then a second one, and so on."""
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.group, []).append(task)
    rounds = max(len(members) for members in groups.values())
    order = [members[place] for place in range(rounds) for members in groups.values() if place < len(members)]
    return order[:limit]


def opened(picture: Picture) -> Image.Image:
    """The picture as RGB."""
    return open_image(picture)


def fingerprint(value: Any) -> str:
    """Twelve digits that change with any plain JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _name(picture: Picture) -> str:
    if isinstance(picture, Path):
        return "/".join(picture.parts[-2:])
    return "sha256:" + pixels_sha256(picture.convert("RGB"))[:12]

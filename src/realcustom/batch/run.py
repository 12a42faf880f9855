"""Making tasks on one engine. The cluster's workers (`realcustom.distributed`) call the same `make`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

from realcustom.batch.jobs import Job, replace_pictures
from realcustom.batch.outputs import Task, is_finished, open_picture, write_task
from realcustom.references import Reference
from realcustom.types import Request

if TYPE_CHECKING:
    from realcustom.engine import Engine


@dataclass(frozen=True)
class Outcome:
    """What became of a task: how many images were made (0 if it was found finished), and why none if it failed."""

    id: str
    line: int
    images: int = 0
    error: str | None = None


def run_local(engine: Engine, tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Make tasks in order on one engine; an outcome as each is finished.

    A task that the engine refuses (ValueError) fails together with those that use its result; the others go on.
    """
    failed: set[str] = set()
    for task in tasks:
        outcome = lost(task, failed) or make(engine, task)
        if outcome.error is not None:
            failed.add(task.id)
        yield outcome


def lost(task: Task, failed: set[str]) -> Outcome | None:
    """The outcome of a task that uses the result of a failed one."""
    for other in task.needs:
        if other in failed:
            return Outcome(task.id, task.line, error=f'It needs "{other}", which could not be made.')
    return None


def refused(engine: Engine, jobs: Iterable[Job | Task]) -> dict[int, str]:
    """What the loaded model says against jobs, before any of them runs: line -> sentence."""
    stand_in = Reference(Image.new("RGB", (1, 1)), None, "")
    known: dict[str, str | None] = {}
    problems = {}
    for job in jobs:
        request = replace_pictures(replace(job.request, seed=0), lambda _: stand_in)
        key = repr({**vars(request), "subjects": {word: vars(s) for word, s in request.subjects.items()}})
        if key not in known:
            known[key] = _refusal(engine, request)
        if known[key] is not None:
            problems[job.line] = known[key]
    return problems


def make(engine: Engine, task: Task, again: bool = True) -> Outcome:
    """Make and write one task; a refusal is in the outcome. again: make it even if it is found finished."""
    if not again and is_finished(task):
        return Outcome(task.id, task.line)
    try:
        request = replace_pictures(task.request, open_picture)
        write_task(task, engine.run(request))
    except ValueError as error:
        return Outcome(task.id, task.line, error=str(error))
    return Outcome(task.id, task.line, images=task.request.num_images)


def _refusal(engine: Engine, request: Request) -> str | None:
    try:
        engine.resolve(request)
    except ValueError as error:
        return str(error)
    return None

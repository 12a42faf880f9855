"""Making tasks on one engine. The cluster's workers (`realcustom.distributed`) call the same `make`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from realcustom.batch.jobs import Job, replace_pictures, rounds_of
from realcustom.batch.outputs import (
    Task,
    is_begun,
    is_finished,
    open_mask_picture,
    open_picture,
    settings_of_finished,
    write_images,
    write_record,
)
from realcustom.engine.requests import parts_of, with_stand_ins
from realcustom.types import Request

if TYPE_CHECKING:
    from realcustom.engine.engine import Engine

OWN = {"prompt", "subjects", "negative_prompt", "seed", "num_images"}  # may differ among requests of one batch


@dataclass(frozen=True)
class Outcome:
    """What became of a task: how many images were made (0 if it was found finished), and why none if it failed.

    refused: numbers of the images that the model's safety checker made black.
    """

    id: str
    line: int
    images: int = 0
    error: str | None = None
    refused: tuple[int, ...] = ()


def run_local(engine: Engine, tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Make tasks on one engine, each after those it needs; an outcome as each is finished.

    A task that the engine refuses (ValueError) fails together with those that use its result; the others go on.
    """
    failed: set[str] = set()
    for round_tasks in rounds_of(tasks):
        for together in groups(round_tasks, engine.batch_size):
            outcomes = [lost(task, failed) for task in together]
            able = [task for task, outcome in zip(together, outcomes, strict=True) if outcome is None]
            for outcome in [*filter(None, outcomes), *make(engine, able)]:
                if outcome.error is not None:
                    failed.add(outcome.id)
                yield outcome


def groups(tasks: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """Independent tasks in groups of at most `size` images that the engine can make in one batch."""
    alike: dict[tuple, list[Task]] = {}
    for task in tasks:
        request = task.request
        settings = [getattr(request, entry.name) for entry in fields(request) if entry.name not in OWN]
        key = (*settings, len(request.subjects), request.negative_prompt is None)
        alike.setdefault(key, []).append(task)
    for members in alike.values():
        group: list[Task] = []
        for task in members:
            if group and sum(member.request.num_images for member in [*group, task]) > size:
                yield group
                group = []
            group.append(task)
        yield group


def make(engine: Engine, tasks: Sequence[Task], again: bool = True) -> list[Outcome]:
    """Make and write independent tasks in one go; a refusal is in the outcome. again: even if they are finished.

    Images of a task that an interrupted run has left, made of the very same settings, are not made again.
    """
    outcomes = []
    whole: list[tuple[Task, Request]] = []
    for task in tasks:
        if not again and is_finished(task):
            outcomes.append(Outcome(task.id, task.line))
            continue
        try:
            request = replace_pictures(task.request, open_picture, open_mask_picture)
            settings = _left(engine, task, request)
        except ValueError as error:
            outcomes.append(Outcome(task.id, task.line, error=str(error)))
            continue
        if settings:
            outcomes.append(_make_alone(engine, task, request, settings))
        else:
            whole.append((task, request))
    return outcomes + _make_opened(engine, whole)


def lost(task: Task, failed: set[str]) -> Outcome | None:
    """The outcome of a task that uses the result of a failed one."""
    for other in task.needs:
        if other in failed:
            return Outcome(task.id, task.line, error=f'It needs "{other}", which could not be made.')
    return None


def refused(engine: Engine, jobs: Iterable[Job | Task]) -> dict[int, str]:
    """What the loaded model says against jobs, before any of them runs: line -> sentence."""
    known: dict[str, str | None] = {}
    problems = {}
    for job in jobs:
        request = replace(job.request, seed=0)
        key = repr(replace_pictures(request, lambda _: ""))
        if key not in known:
            known[key] = _refusal(engine, with_stand_ins(request))
        if known[key] is not None:
            problems[job.line] = known[key]
    return problems


def _make_opened(engine: Engine, ready: list[tuple[Task, Request]]) -> list[Outcome]:
    if len(ready) == 1:
        return [_make_alone(engine, *ready[0])]
    try:
        results = engine.run_many([request for _, request in ready]) if ready else []
    except ValueError:
        # One of them is refused; by themselves the others need not suffer for it.
        return [_make_alone(engine, *one) for one in ready]
    for (task, _), result in zip(ready, results, strict=True):
        write_images(task, result)
        write_record(task, result.metadata)
    return [
        Outcome(task.id, task.line, task.request.num_images, refused=_refused_of(result.metadata))
        for (task, _), result in zip(ready, results, strict=True)
    ]


def _left(engine: Engine, task: Task, request: Request) -> list[dict[str, Any]]:
    """The settings of the first images of a task that lie there already."""
    if not is_begun(task):
        return []
    resolved = engine.resolve(request)
    return settings_of_finished(task, [engine.settings(resolved.image_request(i)) for i in range(resolved.num_images)])


def _make_alone(engine: Engine, task: Task, request: Request, settings: Sequence[dict[str, Any]] = ()) -> Outcome:
    """Make a task batch by batch, each written before the next begins, so that an interruption loses one at most.

    settings: of the first images, which are there already.
    """
    settings, start = list(settings), len(settings)
    count = request.num_images - start
    rest = replace(request, seed=request.image_seed(start), num_images=count) if count else request
    for part in parts_of(rest, engine.batch_size) if count else ():
        try:
            result = engine.run(part)
        except ValueError as error:
            return Outcome(task.id, task.line, error=str(error))
        write_images(task, result, start=len(settings))
        settings += result.metadata
    write_record(task, settings)
    return Outcome(task.id, task.line, count, refused=_refused_of(settings))


def _refused_of(settings: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    return tuple(index for index, entry in enumerate(settings) if entry.get("flagged"))


def _refusal(engine: Engine, request: Request) -> str | None:
    try:
        engine.resolve(request)
    except ValueError as error:
        return str(error)
    return None

"""`realcustom batch`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from realcustom.cli.characters import FOLDER, Folder, finder
from realcustom.cli.console import Interrupted, load_engine, quiet, status, stderr_console
from realcustom.cli.options import NoMetadata, Place, loads_model
from realcustom.engine.options import LoadOptions
from realcustom.types import REFUSED

if TYPE_CHECKING:
    from realcustom.batch.jobs import Job, Problem
    from realcustom.batch.outputs import Task
    from realcustom.batch.run import Outcome

SHOWN = 20  # problems named one by one
EVERY = 10.0  # seconds between lines of progress where stderr is no terminal


@loads_model
def batch(
    jobs: Annotated[str, typer.Argument(metavar="JOBS", help="JSON lines, a job each; a path or URL.")],
    out: Annotated[str, typer.Option(help="Folder or URL (s3://bucket/folder) for ID.png and ID.json.")],
    save_masks: Annotated[bool, typer.Option("--save-masks", help="Also write ID.mask.WORD.png.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without lines that cannot be run.")] = False,
    redo: Annotated[
        bool,
        typer.Option("--redo", help="Make jobs again whose line has changed, and replace other files of their name."),
    ] = False,
    no_metadata: NoMetadata = False,
    engine: Annotated[Place, typer.Option(help="This process, or a Ray cluster.")] = Place.local,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray: engines; default one a GPU or two CPUs.")] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="Ray: cluster to use; default a new one on this machine."),
    ] = None,
    characters: Folder = FOLDER,
    *,
    loading: LoadOptions,
) -> None:
    """Make the images of many requests; run it again after any interruption and it makes only what is missing.

    A line is {"id": "rex-1", "prompt": "a dog on the beach", "subjects": {"dog": "rex.png"}, "seed": 7}, with any
    other setting of a request; "@rex-1" in the place of an image is the result of that line, and "@rex" in a prompt is
    a character. All lines are checked before any work starts.
    """
    from realcustom.batch import outputs, places
    from realcustom.batch.jobs import read_jobs

    if engine is Place.local and workers is not None:
        raise ValueError("--workers is for --engine ray; the local engine is one.")
    quiet()
    source, out = places.absolute(jobs), places.absolute(out)
    good, problems = read_jobs(source, finder(characters))
    with status("Checking pictures ..."):
        good, more, hashes = outputs.check_files(good, source, out, save_masks)
    _tell(jobs, [*problems, *more], skip_bad)
    places.make_folder(out)
    with places.alone_in(out):
        plan = outputs.plan(good, hashes, loading.deciding(), out, save_masks, not no_metadata)
        if not redo:
            _check_changed(plan.changed)
            _check_foreign(plan.foreign)
        if not plan.tasks:
            typer.echo(f"All {plan.finished} jobs are done already.", err=True)
            return
        if engine is Place.ray:
            from realcustom.distributed.ray_batch import RayBatch

            with RayBatch(loading.located().to_dict(), address=ray_address, workers=workers) as cluster:
                tasks = _allowed(jobs, plan.tasks, cluster.refused(plan.tasks), skip_bad)
                _run(cluster.run(tasks), tasks, plan.finished)
        else:
            from realcustom.batch.run import refused, run_local

            loaded = load_engine(loading)
            tasks = _allowed(jobs, plan.tasks, refused(loaded, plan.tasks), skip_bad)
            _warn(jobs, [(task.line, warning) for task in tasks for warning in loaded.warnings(task.request.prompt)])
            _run(run_local(loaded, tasks), tasks, plan.finished)


def _tell(jobs: str, problems: Iterable[Problem], skip_bad: bool) -> None:
    """Name bad lines on stderr; ValueError unless they are to be skipped."""
    problems = sorted(problems)
    for problem in problems[:SHOWN]:
        typer.echo(f"{jobs}, line {problem.line}: {problem.sentence}", err=True)
    if len(problems) > SHOWN:
        typer.echo(f"... and {len(problems) - SHOWN} lines more.", err=True)
    if problems and not skip_bad:
        count = f"{len(problems)} lines" if len(problems) > 1 else "1 line"
        raise ValueError(f"{count} cannot be run, so nothing was started; --skip-bad goes on without.")


def _warn(jobs: str, warnings: list[tuple[int, str]]) -> None:
    """Name lines on stderr that are run, and may not give what they ask for."""
    for line, sentence in warnings[:SHOWN]:
        typer.echo(f"{jobs}, line {line}: {sentence}", err=True)
    if len(warnings) > SHOWN:
        typer.echo(f"... and {len(warnings) - SHOWN} lines more.", err=True)


def _check_changed(changed: tuple[Job, ...]) -> None:
    if changed:
        first = f'"{changed[0].id}" (line {changed[0].line})'
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ValueError(
            f"{first}{more} was made from another line, other pictures or another model than it names now: "
            "--redo makes it again, another --out leaves it."
        )


def _check_foreign(foreign: tuple[Job, ...]) -> None:
    if foreign:
        first = f'"{foreign[0].id}" (line {foreign[0].line})'
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ValueError(
            f"There are images already under the name of {first}{more} that are not known to be its own: "
            "--redo replaces them, another --out leaves them."
        )


def _allowed(jobs: str, tasks: tuple[Task, ...], refusals: dict[int, str], skip_bad: bool) -> list[Task]:
    """The tasks that the model can run; those that need a refused one go, too."""
    from realcustom.batch.jobs import without

    kept, problems = without(tasks, refusals)
    _tell(jobs, problems, skip_bad)
    return kept


def _run(outcomes: Iterator[Outcome], tasks: list[Task], finished: int) -> None:
    """Consume outcomes behind a bar and sum them up; failures are named, and make the exit code 1."""
    start, images, failed = time.monotonic(), 0, 0
    done = 0
    try:
        for outcome in _watched(outcomes, sum(task.request.num_images for task in tasks)):
            done, images = done + 1, images + outcome.images
            for index in outcome.refused:
                typer.echo(f"{outcome.id} (line {outcome.line}): image {index} {REFUSED}", err=True)
            if outcome.error is not None:
                failed += 1
                typer.echo(f"{outcome.id} (line {outcome.line}): {outcome.error}", err=True)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted: {done - failed} of {len(tasks)} jobs are made, and every image made so far is written; "
            "the same command goes on."
        ) from None
    seconds = max(time.monotonic() - start, 1e-9)
    before = f"; done before: {finished}" if finished else ""
    rate = f"{seconds:.1f} s, {images / seconds:.2f} images/s"
    typer.echo(f"Images: {images} ({rate}). Jobs: {len(tasks) - failed}{before}.", err=True)
    if failed:
        typer.echo(f"Jobs that could not be made: {failed}. The same command tries them again.", err=True)
        raise typer.Exit(1)


def _watched(outcomes: Iterator[Outcome], total: int) -> Iterator[Outcome]:
    """Pass outcomes on behind a bar of images, rate and time left; lines of text where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Images"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = stderr_console()
    start = told = time.monotonic()
    made = 0
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task("", total=total, rate="")
        for outcome in outcomes:
            made += outcome.images
            now = time.monotonic()
            rate = made / max(now - start, 1e-9)
            bar.update(line, advance=outcome.images, rate=f"{rate:.2f} images/s")
            if not console.is_terminal and now - told >= EVERY and rate:
                told = now
                left = f"{(total - made) / rate:.0f} s left"
                typer.echo(f"{made} of {total} images, {rate:.2f} images/s, {left}", err=True)
            yield outcome

"""What the evaluation commands share: their options, the world they measure on, tables and progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from realcustom.cli.console import stderr_console

if TYPE_CHECKING:
    from realcustom.data.world import StickerWorld

Model = Annotated[str, typer.Option(help="A bundled model, a folder in diffusers' layout, or a hub id.")]
Adapter = Annotated[str | None, typer.Option(help="Folder or hub id of the adapter, if the model has none.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; a GPU if there is one.")]
Subjects = Annotated[
    Path | None, typer.Option(help="Folder of cut-outs; else $REALCUSTOM_SUBJECTS, subjects or ../shared/subjects.")
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run; outputs/NAME. A run in it goes on.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many images, spread over the subjects.")]
ExtractorsName = Annotated[str, typer.Option(help="standard (from the hub), tests-tiny, or a folder: see the docs.")]
Steps = Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps.")]
ImageScale = Annotated[float | None, typer.Option(help="A scale for the reference (Eq. 13).")]
Scale = Annotated[float | None, typer.Option(help="Guidance scale; the model's own.")]
Sam = Annotated[str | None, typer.Option(help="Folder or hub id of a SAM model that cuts out the subjects.")]
Seed = Annotated[int, typer.Option(min=0, help="The first image's seed.")]
Data = Annotated[Path, typer.Option(help="Folder of DreamBench: subjects.json, prompts.json and images.")]
Lists = Annotated[Path | None, typer.Option(help="The prompt list; else the one in DATA/../prompts.")]
Variants = Annotated[
    Path | None, typer.Option(help="Folder with the adapters of the variants: plus, realcustom, reconstruction ...")
]


@contextmanager
def image_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of finished images on stderr; nothing where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = stderr_console()
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.update(task, completed=count)


def held_out_world(subjects: Path | None) -> StickerWorld:
    """The sticker world of identities that no training shows.

    Raises:
        ValueError: there is no folder of cut-outs.
    """
    from realcustom.data.world import StickerWorld
    from realcustom.evaluation.judge_report import HELD_OUT

    return StickerWorld(subjects_folder(subjects), HELD_OUT)


def subjects_folder(given: Path | None) -> Path:
    """The folder of cut-outs: the given one, $REALCUSTOM_SUBJECTS, or a usual place.

    Raises:
        ValueError: none of them exists.
    """
    if given is not None:
        if not given.is_dir():
            raise ValueError(f"There is no folder {given}.")
        return given
    places = [os.environ.get("REALCUSTOM_SUBJECTS"), "subjects", "../shared/subjects"]
    for place in places:
        if place and Path(place).is_dir():
            return Path(place)
    raise ValueError("The folder of cut-outs was not found: give it with --subjects or in REALCUSTOM_SUBJECTS.")


def show(title: str, lines: list[list[str]]) -> None:
    """A table on stdout; the first line is the header."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for place, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for line in lines[1:]:
        table.add_row(*line)
    console = Console()
    # Piped into a file a table must not be folded to 80 columns.
    console.width = console.width if console.is_terminal else 250
    console.print(table)

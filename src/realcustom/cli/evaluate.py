"""`realcustom evaluate`: how good a model is, as tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from realcustom.cli.console import quiet, status

if TYPE_CHECKING:
    from realcustom.data.world import StickerWorld

app = typer.Typer(help="Measure models: benchmarks, masks, the paradox, ablations.", no_args_is_help=False)

Model = Annotated[str, typer.Option(help="A bundled model, a folder in diffusers' layout, or a hub id.")]
Adapter = Annotated[str | None, typer.Option(help="Folder or hub id of the adapter, if the model has none.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; a GPU if there is one.")]
Subjects = Annotated[
    Path | None, typer.Option(help="Folder of cut-outs; else $REALCUSTOM_SUBJECTS, subjects or ../shared/subjects.")
]


@app.callback()
def evaluate() -> None:
    """Measure models: benchmarks, masks, the paradox, ablations."""


@app.command()
def judge(
    subjects: Subjects = None,
    count: Annotated[int, typer.Option(min=10, help="Pictures of each kind.")] = 400,
    weights: Annotated[Path | None, typer.Option(help="Folder of another judge; the bundled one.")] = None,
) -> None:
    """Validate the sticker judge on real composites of identities it has never seen."""
    world = held_out_world(subjects)
    quiet()
    with status("Looking ..."):
        from realcustom.evaluation.judge import WEIGHTS, Judge
        from realcustom.evaluation.judge_report import validate_judge

        report = validate_judge(Judge.load(weights or WEIGHTS), world, count)
    rows = [[name, str(value), str(value.count)] for name, value in report.items()]
    show("The judge on real composites, held-out identities", [["figure", "value [95 %]", "n"], *rows])


@app.command()
def masks(
    model: Model = "miniature",
    adapter: Adapter = None,
    subjects: Subjects = None,
    limit: Annotated[int, typer.Option(min=1, help="How many composites.")] = 200,
    sweep: Annotated[bool, typer.Option("--sweep", help="Every choice of levels, spread and normalisation.")] = False,
    device: Device = None,
) -> None:
    """Mean IoU of the guidance mask with the true subject, on noised composites of held-out identities."""
    world = held_out_world(subjects)
    quiet()
    with status("Measuring masks ..."):
        from realcustom.evaluation import masks as module
        from realcustom.evaluation.models import open_pipeline

        pipe = open_pipeline(model, adapter, device)
        records = module.fitted(pipe, module.held_out_records(world, limit))
        settings = pipe.default_mask
        variants = module.sweep(pipe.unet, settings) if sweep else module.plain_and_spread(settings)
        rows = module.mask_report(pipe, records, variants)
    if sweep:
        rows.sort(key=lambda row: sum(value.mean for value in row.grid.values()), reverse=True)
    show(f"Guidance mask against the true subject, mean IoU [95 %], {limit} composites", module.table(rows))


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

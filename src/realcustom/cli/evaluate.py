"""`realcustom evaluate`: how good a model is, as tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from realcustom.cli.console import quiet, status, stderr_console

if TYPE_CHECKING:
    from realcustom.data.world import StickerWorld
    from realcustom.evaluation.benchmark import Benchmark

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


Out = Annotated[Path | None, typer.Option(help="Folder of the run; outputs/NAME. A run in it goes on.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many images, spread over the subjects.")]
ExtractorsName = Annotated[str, typer.Option(help="standard (from the hub), tests-tiny, or a folder: see the docs.")]
Steps = Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps.")]
Scale = Annotated[float, typer.Option(help="Guidance scale.")]
Sam = Annotated[str | None, typer.Option(help="Folder or hub id of a SAM model that cuts out the subjects.")]
Seed = Annotated[int, typer.Option(min=0, help="The first image's seed.")]
Data = Annotated[Path, typer.Option(help="Folder of DreamBench: subjects.json, prompts.json and images.")]
Lists = Annotated[Path | None, typer.Option(help="The prompt list; else the one in DATA/../prompts.")]


@app.command()
def dreambench(
    data: Data,
    model: Model = "miniature",
    adapter: Adapter = None,
    extractors: ExtractorsName = "standard",
    limit: Limit = None,
    subject: Annotated[list[str] | None, typer.Option(help="Only this subject; may be repeated.")] = None,
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Images of every prompt.")] = 4,
    references: Annotated[Path | None, typer.Option(help="List that chooses each subject's reference.")] = None,
    steps: Steps = 25,
    guidance_scale: Scale = 3.5,
    sam: Sam = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """DreamBench: every subject under 25 prompts, CLIP-T, CLIP-I and DINO-I."""
    from realcustom.evaluation import datasets

    listing = references or found_list(data, "uno_dreambench_pairs.json")
    benchmark = datasets.dreambench(
        data, images_per_prompt=images_per_prompt, subjects=subject, references=listing, seed=seed
    )
    run(benchmark.limited(limit), Run(model, adapter, extractors, steps, guidance_scale, sam, out, device))


@app.command()
def dreambench_pairs(
    data: Data,
    lists: Lists = None,
    model: Model = "miniature",
    adapter: Adapter = None,
    extractors: ExtractorsName = "standard",
    limit: Limit = None,
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Images of every prompt.")] = 1,
    steps: Steps = 25,
    guidance_scale: Scale = 3.5,
    sam: Sam = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """Two subjects of DreamBench in one picture."""
    from realcustom.evaluation import datasets

    listing = lists or needed_list(data, "uno_dreambench_pairs.json")
    benchmark = datasets.dreambench_pairs(data, listing, images_per_prompt=images_per_prompt, seed=seed)
    run(benchmark.limited(limit), Run(model, adapter, extractors, steps, guidance_scale, sam, out, device))


@app.command()
def msbench(
    data: Data,
    lists: Lists = None,
    layout: Annotated[bool, typer.Option("--layout", help="Hold every subject to its preset box.")] = False,
    model: Model = "miniature",
    adapter: Adapter = None,
    extractors: ExtractorsName = "standard",
    limit: Limit = None,
    steps: Steps = 25,
    guidance_scale: Scale = 3.5,
    sam: Sam = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """MS-Bench: two and three subjects by MS-Diffusion's templates."""
    from realcustom.evaluation import datasets

    benchmark = datasets.msbench(data, lists or needed_list(data, "msbench.json"), layout=layout, seed=seed)
    run(benchmark.limited(limit), Run(model, adapter, extractors, steps, guidance_scale, sam, out, device))


@app.command()
def folder(
    file: Annotated[Path, typer.Argument(help='JSONL: {"prompt", "subjects": {word: picture}} on each line.')],
    model: Model = "miniature",
    adapter: Adapter = None,
    extractors: ExtractorsName = "standard",
    limit: Limit = None,
    steps: Steps = 25,
    guidance_scale: Scale = 3.5,
    sam: Sam = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """Your own list of prompts and subjects."""
    from realcustom.evaluation import datasets

    benchmark = datasets.folder(file, seed=seed)
    run(benchmark.limited(limit), Run(model, adapter, extractors, steps, guidance_scale, sam, out, device))


@dataclass(frozen=True)
class Run:
    """The options that all published benchmarks share."""

    model: str
    adapter: str | None
    extractors: str
    steps: int
    guidance_scale: float
    sam: str | None
    out: Path | None
    device: str | None


def run(benchmark: Benchmark, options: Run) -> None:
    """Images, values, results.json, index.html, and the table on stdout."""
    quiet()
    out = options.out or Path("outputs") / benchmark.name
    from realcustom.evaluation.extractors import load_extractors
    from realcustom.evaluation.generation import Setup
    from realcustom.evaluation.models import open_pipeline
    from realcustom.evaluation.run import run_benchmark

    extractors = load_extractors(options.extractors, options.device)
    segment = None
    if options.sam is not None:
        from realcustom.evaluation.segment import SamSegmenter

        segment = SamSegmenter.load(options.sam, options.device)
    pipe = open_pipeline(options.model, options.adapter, options.device)
    setup = Setup(steps=options.steps, guidance_scale=options.guidance_scale)
    about = {"model": options.model, "adapter": options.adapter, "extractors": options.extractors, "sam": options.sam}
    with image_bar(benchmark.name, len(benchmark.tasks)) as done:
        lines = run_benchmark(pipe, benchmark, setup, extractors, out, about=about, segment=segment, done=done)
    show(f"{benchmark.name}, {options.model}", lines)
    if benchmark.name == "dreambench":
        from realcustom.evaluation.published import SOURCE, dreambench_lines

        show(f"Published numbers, {SOURCE}", dreambench_lines())
    if options.extractors == "tests-tiny":
        typer.echo("Random extractors: the path was exercised, the numbers mean nothing.")
    typer.echo(out / "results.json")
    typer.echo(out / "index.html")


def found_list(data: Path, name: str) -> Path | None:
    """A prompt list beside the data, or None."""
    path = data.parent / "prompts" / name
    return path if path.is_file() else None


def needed_list(data: Path, name: str) -> Path:
    """A prompt list beside the data.

    Raises:
        ValueError: there is none.
    """
    path = found_list(data, name)
    if path is None:
        raise ValueError(f"The prompt list {name} is not in {data.parent / 'prompts'}: give it with --lists.")
    return path


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

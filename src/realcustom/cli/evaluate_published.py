"""`realcustom evaluate dreambench`, `dreambench-pairs`, `msbench` and `folder`: lists that others use, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from realcustom.cli.console import quiet
from realcustom.cli.evaluate_options import (
    Adapter,
    Data,
    Device,
    ExtractorsName,
    Limit,
    Lists,
    Model,
    Out,
    Sam,
    Scale,
    Seed,
    Steps,
    image_bar,
    show,
)

if TYPE_CHECKING:
    from realcustom.evaluation.benchmark import Benchmark


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
    guidance_scale: Scale = None,
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


def dreambench_pairs(
    data: Data,
    lists: Lists = None,
    model: Model = "miniature",
    adapter: Adapter = None,
    extractors: ExtractorsName = "standard",
    limit: Limit = None,
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Images of every prompt.")] = 1,
    steps: Steps = 25,
    guidance_scale: Scale = None,
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


def msbench(
    data: Data,
    lists: Lists = None,
    layout: Annotated[bool, typer.Option("--layout", help="Hold every subject to its preset box.")] = False,
    model: Model = "miniature",
    adapter: Adapter = None,
    extractors: ExtractorsName = "standard",
    limit: Limit = None,
    steps: Steps = 25,
    guidance_scale: Scale = None,
    sam: Sam = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """MS-Bench: two and three subjects by MS-Diffusion's templates."""
    from realcustom.evaluation import datasets

    benchmark = datasets.msbench(data, lists or needed_list(data, "msbench.json"), layout=layout, seed=seed)
    run(benchmark.limited(limit), Run(model, adapter, extractors, steps, guidance_scale, sam, out, device))


def folder(
    file: Annotated[Path, typer.Argument(help='JSONL: {"prompt", "subjects": {word: picture}} on each line.')],
    model: Model = "miniature",
    adapter: Adapter = None,
    extractors: ExtractorsName = "standard",
    limit: Limit = None,
    steps: Steps = 25,
    guidance_scale: Scale = None,
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
    guidance_scale: float | None
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

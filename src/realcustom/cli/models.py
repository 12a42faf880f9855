"""`realcustom models`: what there is, and what a model is."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from realcustom.cli.options import loads_model
from realcustom.engine.options import LoadOptions
from realcustom.hub.bundled import MODELS
from realcustom.hub.names import NAMED, NamedModel

app = typer.Typer(help="Look at models, fetch them, and put trained parts together.")

ROOM = 1.4  # memory over weights that a picture of the model's own size takes, about


@app.callback()
def models() -> None:
    """Look at models, fetch them, and put trained parts together."""


@app.command(name="list")
def list_models() -> None:
    """Print the models that have a name, what they take, and which of them are here."""
    from rich.console import Console
    from rich.table import Table

    from realcustom.convert.named import known

    table = Table("model", "what it is", "to fetch", "weights", "licence", "here")
    table.add_row("miniature", "small stickers of a few words, on any CPU", "-", "0.03 GB", "Apache-2.0", "yes")
    for name, named in NAMED.items():
        here = "yes" if known(name) is not None else "no"
        licences = " / ".join(dict.fromkeys(named.licences))
        table.add_row(name, named.about, _range(*named.fetch_gb), f"{named.memory_gb:g} GB", licences, here)
    Console().print(table)
    typer.echo("realcustom models get NAME fetches one ahead; realcustom generate ... --model NAME does so by itself.")


@app.command()
def get(
    model: Annotated[str, typer.Argument(help="sdxl, sd15, flux, or a hub id of a base model.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; of a named model BASE+WEIGHTS.")] = None,
    variant: Annotated[str | None, typer.Option(help="Of the base's weights: fp16 or full.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Fetch a model ahead and convert it; what is here already is not fetched again.

    Sizes are shown first, the disk is checked, and on a terminal you are asked.
    """
    from realcustom.cli.console import fetching, quiet

    quiet()
    if model in MODELS:
        typer.echo(f"{model} ships inside the package; there is nothing to fetch.")
        return
    from realcustom.convert.named import plan, prepare
    from realcustom.hub.fetching import GB, check_disk
    from realcustom.pipelines.sources import resolve

    with fetching():
        if model in NAMED:
            planned = plan(model, revision)
            for path, wanted in planned.files.items():
                size = planned.weights.sizes[path] / GB
                missing = "" if planned.weights.missing([path]) else ", here already"
                typer.echo(f"{planned.weights.repo}: {path} ({wanted.what}), {size:.2f} GB{missing}", err=True)
            check_disk(planned.weights.folder, planned.missing_bytes, model)
            _tell_memory(NAMED[model])
            if not yes:
                _ask(f"Fetch up to {planned.missing_bytes / GB:.1f} GB, and the base model {planned.base.repo}?")
            prepare(model, revision, refresh=True)
        sources = resolve(model, revision=revision, variant=variant)
    typer.echo((sources.lora or sources.parts.get("adapter", sources.base / "model")).parent)


def _ask(question: str) -> None:
    """A question on a terminal only; typer.Abort where the answer is no."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        typer.confirm(question, default=True, abort=True, err=True)


def _tell_memory(named: NamedModel) -> None:
    """One line on whether this machine's accelerator holds the model."""
    import torch

    if not torch.cuda.is_available():
        typer.echo(f"Its weights take {named.memory_gb:g} GB in bfloat16; there is no GPU here.", err=True)
        return
    there = torch.cuda.get_device_properties(0).total_memory / 1e9
    enough = there > named.memory_gb * ROOM
    hint = "" if enough else "; --offload model lets it run with less"
    typer.echo(f"Its weights take {named.memory_gb:g} GB in bfloat16; the GPU has {there:.0f} GB{hint}.", err=True)


def _range(low: float, high: float) -> str:
    return f"{low:g} GB" if low == high else f"{low:g} to {high:g} GB"


@app.command()
@loads_model
def show(name: Annotated[str | None, typer.Argument(help="As --model.")] = None, *, loading: LoadOptions) -> None:
    """Print a model's parts, sizes and defaults, and of a small one the words it knows."""
    from rich.console import Console
    from rich.table import Table

    from realcustom.cli.console import load_engine

    loading = replace(loading, model=name or loading.model, device=loading.device or "cpu")
    engine = load_engine(loading)
    pipe = engine.pipeline
    table = Table("part", "class", "parameters", title=f"{loading.model}: {type(pipe).__name__}")
    for part_name, part in pipe.components.items():
        if hasattr(part, "parameters"):
            count = sum(parameter.numel() for parameter in part.parameters())
            table.add_row(part_name, type(part).__name__, f"{count:,}")
    console = Console()
    console.print(table)
    facts = engine.describe()
    knows = facts.pop("knows", {})
    for key, value in facts.items():
        console.print(f"{key}: {value}", highlight=False)
    for key, phrases in knows.items():
        console.print(f"{key}: {', '.join(phrases)}", highlight=False)


@app.command()
def export(
    base: Annotated[Path, typer.Option(help="Exported folder of the base run.")] = Path("outputs/base/export"),
    adapter: Annotated[Path, typer.Option(help="Exported folder of the adapter run.")] = Path("outputs/adapter/export"),
    out: Annotated[Path, typer.Option(help="Model folder to write.")] = Path("outputs/miniature"),
) -> None:
    """Put the miniature's trained parts together: one folder that --model takes."""
    for folder in (base, adapter):
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}: train it first.")
    from realcustom.cli.console import quiet

    quiet()
    from realcustom.data import vocabulary
    from realcustom.training.miniature import export_miniature

    notes = {
        "words": list(vocabulary.DEFAULT_WORDS),
        "scenes": list(vocabulary.SCENE_PHRASES.values()),
        "accessories": list(vocabulary.ACCESSORY_PHRASES.values()),
        "colours": list(vocabulary.COLOURS),
        "styles": list(vocabulary.STYLES),
    }
    typer.echo(export_miniature(base, adapter, out, notes))

"""`realcustom models`: what a model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Look at models, and put trained parts together.")

KNOWS = "knows.json"  # of a model trained on a closed world: what its prompts may speak of


@app.callback()
def models() -> None:
    """Look at models, and put trained parts together."""


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="A bundled model, a folder or a hub id.")] = "miniature",
    adapter: Annotated[str | None, typer.Option(help="Folder or hub id of the adapter, if the model has none.")] = None,
) -> None:
    """Print a model's parts, sizes and defaults, and of a small one the words it knows."""
    from rich.console import Console
    from rich.table import Table

    from realcustom.cli.console import load_engine
    from realcustom.hub.bundled import model_folder

    engine = load_engine(model, adapter, "cpu", None)
    pipe = engine.pipeline
    table = Table("part", "class", "parameters", title=f"{model}: {type(pipe).__name__}")
    for name, part in pipe.components.items():
        if hasattr(part, "parameters"):
            count = sum(parameter.numel() for parameter in part.parameters())
            table.add_row(name, type(part).__name__, f"{count:,}")
    console = Console()
    console.print(table)
    for name, value in engine.describe().items():
        console.print(f"{name}: {value}", highlight=False)
    for name, value in knowledge(model_folder(model)).items():
        console.print(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}", highlight=False)


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


def knowledge(folder: str) -> dict[str, Any]:
    """What a model of a closed world knows, by kind; empty for one that reads any text."""
    path = Path(folder) / KNOWS
    return json.loads(path.read_text()) if path.is_file() else {}

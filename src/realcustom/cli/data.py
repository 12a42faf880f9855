"""`realcustom data`: training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from realcustom.cli import prepare

app = typer.Typer(help="Make training data.", no_args_is_help=False)
app.add_typer(prepare.app, name="prepare")


@app.callback()
def data() -> None:
    """Make training data."""


@app.command()
def stickers(
    subjects: Annotated[Path, typer.Argument(help="Folder of cut-outs: one folder of RGBA PNG files a word.")],
    out: Annotated[Path, typer.Option(help="Folder for the WebDataset shards.")] = Path("outputs/stickers"),
    count: Annotated[int, typer.Option(min=1, help="How many records.")] = 10_000,
    per_shard: Annotated[int, typer.Option(min=1, help="Records of a shard.")] = 1000,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the pictures in pixels.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="One seed is one world.")] = 0,
    held_out: Annotated[bool, typer.Option("--held-out", help="Identities that training never shows.")] = False,
) -> None:
    """Compose pictures with known truth from cut-outs; shards that exist already are kept."""
    if not subjects.is_dir():
        raise ValueError(f"There is no folder {subjects}.")
    from realcustom.cli.console import status
    from realcustom.data.shards import write_shards
    from realcustom.data.world import StickerWorld, WorldSettings

    split = "held-out" if held_out else "train"
    settings = WorldSettings(size=size, reference_size=size, seed=seed, split=split)
    with status(f"Writing {count} records to {out} ..."):
        paths = write_shards(StickerWorld(subjects, settings), range(count), out, per_shard=per_shard)
    for path in paths:
        typer.echo(path)

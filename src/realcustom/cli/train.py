"""`realcustom train`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or its name in recipes/.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Options of the recipe.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint, or start.")] = False,
    out: Annotated[Path | None, typer.Option(help="Output folder; the recipe's own.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps in all; the recipe's own.")] = None,
) -> None:
    """Train what a recipe says: autoencoder, base model or adapter. For several processes:
    torchrun --nproc-per-node N -m realcustom.training RECIPE ..."""
    from realcustom.training.recipes import configure, load_recipe, parse_options

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = configure(load_recipe(recipe), parse_options(options or []))
    changes = {"out": out, "steps": max_steps}
    config = config.replace(**{name: value for name, value in changes.items() if value is not None})

    from realcustom.training.loop import train as run

    typer.echo(run(config, resume=resume))

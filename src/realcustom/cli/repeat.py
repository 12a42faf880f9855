"""`realcustom repeat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from realcustom.cli.console import check_output, load_engine, step_bar
from realcustom.cli.results import save_result
from realcustom.engine.options import LoadOptions
from realcustom.engine.requests import request_from_record
from realcustom.pictures.png import read_metadata


def repeat(
    image: Annotated[Path, typer.Argument(help="A PNG file that realcustom made.")],
    out: Annotated[Path | None, typer.Option(help="PNG file; the default is IMAGE-repeat.png.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda ...; the default is the kind it was made on.")] = None,
    save_masks: Annotated[bool, typer.Option("--save-masks", help="Also write masks and overlays.")] = False,
) -> None:
    """Make an image again from the settings stored in it."""
    out = out or image.with_name(f"{image.stem}-repeat.png")
    check_output(out)
    record = read_metadata(image)
    request = request_from_record(record["request"], beside=image.parent)
    source = record["model"]
    if not isinstance(source, dict) or not isinstance(source.get("model"), str):
        raise ValueError(f"{image} does not say which model it was made with.")
    where = {"device": device or record.get("device"), "dtype": record.get("dtype")}
    engine = load_engine(LoadOptions.from_dict(source, **where))
    with step_bar("Repeating") as show:
        result = engine.run(request, progress=show)
    for path in save_result(result, out, save_masks):
        typer.echo(path)

"""`realcustom convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    sources: Annotated[
        list[Path], typer.Argument(metavar="FOLDER", help="Folder of a downloaded release, or its files one by one.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; it becomes usable as --adapter.")],
    unet_config: Annotated[
        Path | None, typer.Option(help="JSON configuration of the base's U-Net; by default SDXL's or SD v1.5's.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Hub id or folder of the base model; recorded, default the family's.")
    ] = None,
    negative_prompt: Annotated[
        Path | None, typer.Option(help="Text file of the negative prompt to record; default ours.")
    ] = None,
    dim_head: Annotated[int, typer.Option(min=1, help="Head size of the released projector's attention.")] = 64,
    dtype: Annotated[str, typer.Option(help="Of the weights written: bfloat16, float16 or float32.")] = "bfloat16",
) -> None:
    """Convert a release of RealCustom++, or IP-Adapter files, to a folder that --adapter takes.

    Files are recognised by their keys, whatever they are called. Keys that could change a picture and belong to nothing
    are listed and refused; after an error nothing is left behind.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder.")
    negative = None if negative_prompt is None else " ".join(negative_prompt.read_text().split())
    from realcustom.cli.console import quiet, status

    quiet()
    with status("Converting ..."):
        from realcustom.convert.folder import convert as convert_files
        from realcustom.engine.loading import named_dtype

        done = convert_files(
            sources,
            out,
            unet_config=unet_config,
            base=base,
            negative_prompt=negative,
            dim_head=dim_head,
            dtype=named_dtype(dtype),
        )
    for note in done.notes:
        typer.echo(note, err=True)
    for name in done.parts:
        typer.echo(out / name)

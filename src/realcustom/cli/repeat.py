"""`realcustom repeat`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from realcustom.cli.characters import FOLDER
from realcustom.cli.console import check_output, load_engine
from realcustom.cli.options import NoMetadata, Overwrite
from realcustom.cli.results import Outputs, make_images
from realcustom.engine.options import LoadOptions
from realcustom.engine.requests import request_from_record
from realcustom.pictures.png import read_metadata


def repeat(
    image: Annotated[Path, typer.Argument(help="A PNG file that realcustom made.")],
    out: Annotated[Path | None, typer.Option(help="PNG file; the default is IMAGE-repeat.png.")] = None,
    references: Annotated[
        list[Path], typer.Option(help="Folder where the references are searched by what they show; may be repeated.")
    ] = [],  # noqa: B006
    data: Annotated[Path, typer.Option(help="Data folder of the studio, whose pictures are searched, too.")] = FOLDER,
    model: Annotated[str | None, typer.Option(help="The model, where it is no longer at its recorded place.")] = None,
    adapter: Annotated[str | None, typer.Option(help="The adapter, where it is no longer at its place.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda ...; the default is the kind it was made on.")] = None,
    save_masks: Annotated[bool, typer.Option("--save-masks", help="Also write masks and overlays.")] = False,
    overwrite: Overwrite = False,
    no_metadata: NoMetadata = False,
) -> None:
    """Make an image again from the settings stored in it.

    Its references are found by what they show: at their old place, beside the image, in the folders of --references,
    and in the data folder of the studio.
    """
    if str(image) == ".":
        raise ValueError("repeat needs the name of a PNG file.")
    out = out or image.with_name(f"{image.stem}-repeat.png")
    check_output(out)
    for folder in references:
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}.")
    record = read_metadata(image)
    request = request_from_record(record["request"], image.parent, references, _elsewhere(data))
    source = record["model"]
    if not isinstance(source, dict) or not isinstance(model or source.get("model"), str):
        raise ValueError(f"{image} does not say which model it was made with; name it with --model.")
    outputs = Outputs(
        out, request, save_masks=save_masks, metadata=not no_metadata, overwrite=overwrite, inputs=[image]
    )
    where = {"device": device or record.get("device"), "dtype": record.get("dtype")}
    moved = {name: value for name, value in (("model", model), ("adapter", adapter)) if value}
    engine = load_engine(LoadOptions.from_dict({**source, **moved}, **where))
    make_images(engine, request, outputs, "Repeating")


def _elsewhere(data: Path) -> Callable[[str | None, str], Any]:
    """Pictures by recorded path and hash: behind their URL, or in a data folder of the studio."""

    def find(path: str | None, sha256: str) -> Any:
        from realcustom.batch import places
        from realcustom.serving.picture_reader import find_picture

        if path is not None and places.is_url(path):
            try:
                return places.read_bytes(path)
            except ValueError:
                return None
        return find_picture(data, PurePosixPath(path or "").name, sha256)

    return find

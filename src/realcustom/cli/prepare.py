"""`realcustom data prepare`: real pictures and captions to training shards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Filter real pictures and captions into shards, with target words, masks and pairs.")

Out = Annotated[Path, typer.Option(help="Folder for the shards; shards that exist already are kept.")]
Size = Annotated[int, typer.Option(min=32, max=2048, help="Side of the square pictures in pixels.")]
LeastSide = Annotated[int, typer.Option(min=16, help="Drop pictures whose short side is smaller.")]
Ray = Annotated[bool, typer.Option("--ray", help="Prepare on a Ray cluster, one task a shard.")]


def write(examples: Iterable, out: Path, size: int, least_side: int, ray: bool) -> None:
    """Write the shards and print what was kept and what was dropped, and why."""
    from realcustom.cli.console import status
    from realcustom.data.prepare import PrepareSettings, prepare

    settings = PrepareSettings(size=size, least_side=least_side)
    with status(f"Preparing {out} ..."):
        if ray:
            from realcustom.data.prepare_ray import prepare_with_ray

            report = prepare_with_ray(examples, out, settings)
        else:
            report = prepare(examples, out, settings)
    typer.echo(f"{report.kept} of {report.consumed} kept in {len(report.shards)} shards in {out}")
    for reason, count in report.dropped.most_common():
        typer.echo(f"  {count} dropped: {reason}")


@app.command()
def images(
    folder: Annotated[Path, typer.Argument(help="Pictures, captioned by .txt files or by their folder's name.")],
    out: Out = Path("outputs/shards"),
    size: Size = 512,
    least_side: LeastSide = 256,
    ray: Ray = False,
) -> None:
    """A folder of pictures."""
    from realcustom.data.sources import image_folder

    write(image_folder(folder), out, size, least_side, ray)


@app.command()
def jsonl(
    file: Annotated[Path, typer.Argument(help="A line: image, caption, and if known word, reference.")],
    folder: Annotated[Path, typer.Option("--images", help="Folder that the file's paths start from.")],
    out: Out = Path("outputs/shards"),
    size: Size = 512,
    least_side: LeastSide = 256,
    ray: Ray = False,
) -> None:
    """Captions in a JSONL file."""
    from realcustom.data.sources import jsonl_captions

    write(jsonl_captions(file, folder), out, size, least_side, ray)


@app.command()
def coco(
    captions: Annotated[Path, typer.Argument(help="COCO caption annotations.")],
    folder: Annotated[Path, typer.Option("--images", help="Folder of the pictures.")],
    instances: Annotated[Path | None, typer.Option(help="COCO instance annotations: boxes and masks.")] = None,
    out: Out = Path("outputs/shards"),
    size: Size = 512,
    least_side: LeastSide = 256,
    ray: Ray = False,
) -> None:
    """COCO-style annotations."""
    from realcustom.data import sources

    write(sources.coco(captions, folder, instances), out, size, least_side, ray)


@app.command()
def views(
    folder: Annotated[Path, typer.Argument(help="One folder an identity, several pictures in each.")],
    pairs: Annotated[int, typer.Option(min=1, help="References for each picture.")] = 4,
    out: Out = Path("outputs/shards"),
    size: Size = 512,
    least_side: LeastSide = 256,
    ray: Ray = False,
) -> None:
    """Re-contextualisation pairs from several views of each identity."""
    from realcustom.data.sources import multi_view

    write(multi_view(folder, pairs), out, size, least_side, ray)


@app.command()
def shards(
    urls: Annotated[list[str], typer.Argument(help="WebDataset shards: paths or URLs.")],
    out: Out = Path("outputs/shards"),
    size: Size = 512,
    least_side: LeastSide = 256,
    ray: Ray = False,
) -> None:
    """Shards of other projects: a picture and a caption for each key."""
    from realcustom.data import sources

    write(sources.shards(urls), out, size, least_side, ray)

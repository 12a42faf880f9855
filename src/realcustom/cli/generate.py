"""`realcustom generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from realcustom.cli.characters import FOLDER, Folder, finder
from realcustom.cli.console import check_output, load_engine
from realcustom.cli.options import (
    NoMetadata,
    Overwrite,
    loads_model,
    open_pictures,
    read_controls,
    read_hole,
    read_size,
    read_subjects,
)
from realcustom.cli.results import Outputs, make_images
from realcustom.engine.characters import read_mentions
from realcustom.engine.options import LoadOptions
from realcustom.engine.presets import DEFAULT
from realcustom.engine.requests import check_request
from realcustom.types import Request


@loads_model
def generate(
    prompt: Annotated[str, typer.Argument(help='What the image shows: "a dog on the beach"; @rex is a character.')],
    subject: Annotated[
        list[str],
        typer.Option(
            metavar="WORD=IMAGE",
            help="A word of the prompt and what it looks like: a path, a URL, or - for stdin; may be repeated.",
        ),
    ] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="PNG file; several images become out-0.png, out-1.png ...")] = Path(
        "out.png"
    ),
    strength: Annotated[
        list[str], typer.Option(metavar="WORD=NUMBER", help="How much a subject's reference acts, 0 to 2; default 1.")
    ] = [],  # noqa: B006
    region: Annotated[
        list[str],
        typer.Option(
            metavar="WORD=PLACE", help="Where a subject may stand: left,top,right,bottom from 0 to 1, or a mask image."
        ),
    ] = [],  # noqa: B006
    weights: Annotated[
        list[str], typer.Option(metavar="WORD=NUMBERS", help="How much each image of a subject counts: 1,0.5 ...")
    ] = [],  # noqa: B006
    image: Annotated[
        str | None, typer.Option(metavar="PICTURE", help="A picture to start from: a path, a URL, or - for stdin.")
    ] = None,
    denoising: Annotated[
        float | None, typer.Option(help="Share of the steps that are run on it, 0 to 1; 0.8, in a hole 1.")
    ] = None,
    hole: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help='Where it is drawn anew: left,top,right,bottom from 0 to 1, corners "x,y x,y x,y", or a mask image.',
        ),
    ] = None,
    feather: Annotated[int, typer.Option(help="Pixels over which the new passes into the old, inside the hole.")] = 0,
    padding: Annotated[
        int | None, typer.Option(help="Draw the hole and so many pixels around it only, at full resolution.")
    ] = None,
    control: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]PICTURE[@SCALE]", help="A picture for a --controlnet, outline=x.png@0.8; may be repeated."
        ),
    ] = [],  # noqa: B006
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Width x height in pixels; the model's own.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the model's own.")] = None,
    seed: Annotated[int, typer.Option(help="Image i is drawn from seed + i; -1 is a random seed.")] = 0,
    num_images: Annotated[int, typer.Option(help="How many images.")] = 1,
    guidance_scale: Annotated[float | None, typer.Option(help="How closely to follow prompt and reference.")] = None,
    image_guidance_scale: Annotated[
        float | None, typer.Option(help="A scale of its own for the reference (RealCustom Eq. 13).")
    ] = None,
    mask_scope: Annotated[float | None, typer.Option(help="Share of the image a subject may fill, 0 to 1.")] = None,
    preset: Annotated[str, typer.Option(help="exact, fast or turbo.")] = DEFAULT,
    negative_prompt: Annotated[str | None, typer.Option(help="What the image does not show.")] = None,
    long_prompt: Annotated[
        bool, typer.Option("--long-prompt", help="Read prompts longer than the model reads at once, in chunks.")
    ] = False,
    prompt_weights: Annotated[
        bool, typer.Option("--prompt-weights", help='Let "(word:1.3)", "(word)" and "[word]" weigh words.')
    ] = False,
    save_masks: Annotated[
        bool, typer.Option("--save-masks", help="Also write out.mask.WORD.png and overlays.")
    ] = False,
    overwrite: Overwrite = False,
    no_metadata: NoMetadata = False,
    characters: Folder = FOLDER,
    describe_characters: Annotated[
        bool, typer.Option("--describe-characters", help="Add the descriptions of mentioned characters to the prompt.")
    ] = False,
    *,
    loading: LoadOptions,
) -> None:
    """Make images of a prompt, with your own subjects in the place of its words."""
    check_output(out)
    given = read_subjects(subject, strength, region, weights)
    prompt, subjects = read_mentions(prompt, given, finder(characters), describe_characters)
    request = Request(
        prompt=prompt,
        subjects=subjects,
        negative_prompt=negative_prompt,
        steps=steps,
        seed=seed,
        num_images=num_images,
        guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale,
        mask_scope=mask_scope,
        preset=preset,
        image=image,
        denoising=denoising,
        hole=read_hole(hole),
        feather=feather,
        padding=padding,
        controls=read_controls(control),
        long_prompt=long_prompt,
        prompt_weights=prompt_weights,
        **read_size(size),
    )
    # Before the model is loaded: a missing file or word need not cost the user that wait.
    check_request(request)
    request = open_pictures(request)
    outputs = Outputs(out, request, save_masks=save_masks, metadata=not no_metadata, overwrite=overwrite)
    engine = load_engine(loading)
    for warning in engine.warnings(request.prompt):
        typer.echo(warning, err=True)
    make_images(engine, request, outputs, "Generating")

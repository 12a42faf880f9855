"""`realcustom convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def convert(
    files: Annotated[
        list[Path],
        typer.Argument(help="Checkpoint files of the release: the U-Net first, then the RealCustom weights."),
    ],
    out: Annotated[Path, typer.Option(help="Folder that becomes usable as --adapter.")],
    unet_config: Annotated[Path | None, typer.Option(help="JSON configuration of the U-Net; SDXL's own.")] = None,
    siglip: Annotated[Path | None, typer.Option(help="timm state dict of SigLIP, to convert as well.")] = None,
    dino: Annotated[Path | None, typer.Option(help="timm state dict of DINOv2, to convert as well.")] = None,
    dim_head: Annotated[int, typer.Option(min=1, help="Head size of the projector's attention.")] = 64,
) -> None:
    """Convert checkpoints of the authors' release; unknown, missing and misshapen keys are listed and refused.

    The folder then holds the adapter, the U-Net if the files hold one, the release's scheduler and, with --siglip and
    --dino, the reference encoder: realcustom generate ... --model SDXL_BASE --adapter FOLDER.
    """
    if (siglip is None) != (dino is None):
        raise ValueError("--siglip and --dino belong together: give both or neither.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder.")
    from realcustom.cli.console import quiet, status

    quiet()
    with status("Converting ..."):
        from realcustom.convert.release import convert_backbones, convert_release_checkpoint
        from realcustom.engine.loading import SETTINGS
        from realcustom.pipelines.scheduler import RealCustomScheduler

        split = convert_release_checkpoint(files, out, unet_config, dim_head)
        # The release's weights expect its way of conditioning and of stepping, not stock SDXL's.
        RealCustomScheduler().save_pretrained(out / "scheduler")
        (out / SETTINGS).write_text(json.dumps({"released_conditioning": True}) + "\n")
        if siglip is not None and dino is not None:
            # As many levels as the projector reads: the deep-only one needs just the deepest.
            levels = {} if split.adapter_config["projector_config"]["kind"] == "shallow" else DEEP_ONLY
            convert_backbones(siglip, dino, out, **levels)
    for name in ("adapter", "unet", "reference_encoder", "scheduler"):
        if (out / name).is_dir():
            typer.echo(out / name)


DEEP_ONLY = {"siglip_layers": (25,), "dino_layers": (22,)}

"""What an autoencoder keeps of pictures before any diffusion: the ceiling of every model trained on its latents.

Shapes: N pictures, (H, W) picture height and width in pixels, (h, w) those of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoModel
from einops import rearrange
from PIL import Image
from torch import Tensor

from realcustom.data.records import Record
from realcustom.data.world import StickerWorld
from realcustom.hub.bundled import model_folder
from realcustom.training.autoencoder import latents_of, to_pictures, to_signed, viewed
from realcustom.training.logs import grid

from .judge import Judge
from .judge_report import world_like
from .metrics import Estimate, bootstrap, paired_difference
from .sticker_figures import NAMES, References, Values, measure_stickers
from .stickers import Sample

BATCH = 20
SCALED = 0.75  # side of the scaled latents, as a share of the whole's
GRID_PICTURES = 24
GRID_COLUMNS = 8

Change = Callable[[Tensor], Tensor]
"""A change of maps (N, C, h, w), of any number of channels and size, that latents should follow."""


@dataclass(frozen=True, kw_only=True)
class Behind:
    """A figure of the judge before and behind the autoencoder, over the same pictures."""

    name: str
    composites: Estimate
    decoded: Estimate
    difference: Estimate


def load_autoencoder(model: str | Path):
    """The autoencoder of a bundled model, of a folder in diffusers' layout, or of its own folder; in evaluation mode.

    Raises:
        ValueError: there is none.
    """
    folder = Path(model_folder(str(model)))
    places = [place for place in (folder / "vae", folder) if (place / "config.json").is_file()]
    if not places:
        raise ValueError(f"{model} holds no autoencoder: give a model's folder, or that of an exported autoencoder.")
    return AutoModel.from_pretrained(str(places[0])).float().eval()


def plain_records(world: StickerWorld, count: int) -> list[Record]:
    """The first `count` records of the world without style, which would blur or recolour the whole picture."""
    plain = world_like(world, replace(world.settings, style=0.0))
    return [plain.record(index) for index in range(count)]


def same(maps: Tensor) -> Tensor:
    return maps


def mirrored(maps: Tensor) -> Tensor:
    """Left and right exchanged."""
    return viewed(maps, 1.0, mirrored=True)


def scaled(maps: Tensor) -> Tensor:
    """`SCALED` times as large."""
    return viewed(maps, SCALED)


CHANGES: dict[str, Change] = {
    "PSNR, dB": same,
    "PSNR of mirrored latents, dB": mirrored,
    f"PSNR of latents scaled to {SCALED}, dB": scaled,
}


@torch.no_grad()
def reconstruct(vae, pictures: np.ndarray, change: Change = same) -> tuple[np.ndarray, np.ndarray]:
    """What pictures should be and what the autoencoder makes of them.

    Args:
        vae: an AutoencoderTiny or AutoencoderKL.
        pictures: uint8 (N, H, W, 3).
        change: of the latents before they are decoded, and of the pictures that they are compared with.

    Returns:
        Target and reconstruction, each uint8 (N, H', W', 3); H' and W' are what `change` makes of H and W.
    """
    targets, decoded = [], []
    for start in range(0, len(pictures), BATCH):
        pixels = to_signed(torch.from_numpy(rearrange(pictures[start : start + BATCH], "b h w c -> b c h w").copy()))
        pixels = pixels.to(vae.device)
        latents = change(latents_of(vae, pixels))
        targets.append(to_pictures(change(pixels)))
        decoded.append(to_pictures(vae.decode(latents).sample))
    return np.concatenate(targets), np.concatenate(decoded)


def psnr(targets: np.ndarray, pictures: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
    """Peak signal-to-noise ratio of every picture (N,) in dB; at most that of one level in one value.

    Args:
        targets, pictures: uint8 (N, H, W, 3).
        masks: bool (N, H, W), not empty, the pixels that count; None for all.
    """
    squares = ((targets.astype(np.float64) - pictures.astype(np.float64)) ** 2).mean(axis=3)
    weights = np.ones(squares.shape) if masks is None else masks.astype(np.float64)
    errors = (squares * weights).sum(axis=(1, 2)) / weights.sum(axis=(1, 2))
    least = 1.0 / targets[0].size
    return 10 * np.log10(255.0**2 / np.maximum(errors, least))


def fidelity(vae, records: Sequence[Record]) -> dict[str, Estimate]:
    """PSNR of the records' pictures: of all, inside the subjects, and of mirrored and scaled latents."""
    pictures = np.stack([record.image for record in records])
    figures = {name: bootstrap(psnr(*reconstruct(vae, pictures, change))) for name, change in CHANGES.items()}
    masks = np.stack([record.masks.any(axis=0) for record in records])
    seen = masks.any(axis=(1, 2))
    targets, decoded = reconstruct(vae, pictures[seen])
    figures["PSNR inside the subjects, dB"] = bootstrap(psnr(targets, decoded, masks[seen]))
    return figures


def behind(vae, judge: Judge, made: Sequence[Sample]) -> list[Behind]:
    """The judge's figures of the benchmark's real composites, and of the same sent through the autoencoder."""
    pictures = np.stack([sample.record.image for sample in made])
    references, groups = References(judge, made), [sample.task.group for sample in made]
    before, after = (
        measure_stickers(judge, made, [Image.fromarray(picture) for picture in shown], references)
        for shown in reconstruct(vae, pictures)
    )
    return [row for name in NAMES if (row := compared(name, before, after, groups)).composites.count]


def compared(name: str, before: Sequence[Values], after: Sequence[Values], groups: Sequence[str]) -> Behind:
    """A figure of the same pictures twice; `count` is 0 where none has it."""
    first, second = ([row.get(name, np.nan) for row in rows] for rows in (before, after))
    return Behind(
        name=NAMES[name],
        composites=bootstrap(first, groups),
        decoded=bootstrap(second, groups),
        difference=paired_difference(second, first, groups),
    )


def shown_grid(vae, records: Sequence[Record]) -> np.ndarray:
    """Rows of pictures, each above the row of its reconstructions: uint8 (2 R H, `GRID_COLUMNS` W, 3) for R rows."""
    pictures = np.stack([record.image for record in records[:GRID_PICTURES]])
    targets, decoded = reconstruct(vae, pictures)
    rows = []
    for start in range(0, len(pictures), GRID_COLUMNS):
        part = slice(start, start + GRID_COLUMNS)
        rows += [grid(targets[part], GRID_COLUMNS), grid(decoded[part], GRID_COLUMNS)]
    return np.concatenate(rows)


def fidelity_table(figures: dict[str, Estimate]) -> list[list[str]]:
    """Header and one line a figure."""
    return [["figure", "value [95 %]", "n"], *[[name, str(value), str(value.count)] for name, value in figures.items()]]


def behind_table(rows: Sequence[Behind]) -> list[list[str]]:
    """Header and one line a figure."""
    header = ["figure", "real composites", "behind the autoencoder", "difference", "n"]
    cells = [[r.name, str(r.composites), str(r.decoded), str(r.difference), str(r.composites.count)] for r in rows]
    return [header, *cells]


def results(figures: dict[str, Estimate], rows: Sequence[Behind]) -> dict:
    """Plain JSON values."""
    judged = {
        row.name: {part: getattr(row, part).to_dict() for part in ("composites", "decoded", "difference")}
        for row in rows
    }
    return {"fidelity": {name: value.to_dict() for name, value in figures.items()}, "judge": judged}

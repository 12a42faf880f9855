"""How well the guidance mask finds the subject: noised real composites through the guidance branch.

The scope is matched to the subject's true area, so that the maps are judged and not the choice of gamma_scope.
Shapes: B pictures, (G, g) the mask's grid, H, W picture height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from realcustom.data.records import Record
from realcustom.guidance.mask import NORMALISATIONS, RULES, MaskSettings
from realcustom.models.backbone import Backbone
from realcustom.pipelines.denoise import Conditions, guidance_branch
from realcustom.pipelines.subjects import token_weights

from .metrics import Estimate, bootstrap, mask_iou, top_share
from .models import encode_pictures, encode_prompts

TIMES = (200, 600, 900)


@dataclass(frozen=True, kw_only=True)
class MaskRow:
    """One variant: mean IoU by timestep, on the mask's own grid and after bilinear enlargement to picture size."""

    name: str
    settings: MaskSettings
    grid: dict[int, Estimate]
    pixels: dict[int, Estimate]


def plain_and_spread(settings: MaskSettings) -> dict[str, MaskSettings]:
    """The settings without and with the self-attention spread."""
    return {
        "plain mean of the word maps": replace(settings, spread=0),
        "spread by self-attention": replace(settings, spread=max(1, settings.spread)),
    }


def sweep(backbone: Backbone, settings: MaskSettings) -> dict[str, MaskSettings]:
    """Every sensible choice of word levels, normalisation, spread and spread levels for this network."""
    crosses, selves = sorted(backbone.word_levels), sorted(backbone.self_levels)
    words = [None, *[(level,) for level in crosses]] if len(crosses) > 1 else [None]
    spreads = [(0, None), *product((1, 2, 3), [(level,) for level in selves])]
    if len(selves) > 1:
        spreads += [(1, tuple(selves)), (2, tuple(selves))]
    variants = {}
    for levels, normalisation, (power, where) in product(words, NORMALISATIONS, spreads):
        # With one layer kind left, "max" and "min-max" differ in scale only; both are kept because spreading mixes.
        name = f"word levels {shown(levels)}, {normalisation}, spread {power}" + (
            f" on {shown(where)}" if power else ""
        )
        variants[name] = replace(
            settings, word_levels=levels, normalisation=NORMALISATIONS[normalisation], spread=power, spread_levels=where
        )
    return variants


def shown(levels: tuple[int, ...] | None) -> str:
    return "all" if levels is None else "+".join(map(str, levels))


@torch.no_grad()
def mask_scores(pipe, records: Sequence[Record], time: int, settings: MaskSettings, seed: int = 0) -> Tensor:
    """Scores (B, G, g) in [0, 1] of every position before the scope cuts, for the first target word of each record.

    Args:
        pipe: a pipeline with stock components.
        records: composed pictures with their captions.
        time: timestep at which their latents are noised, 0 to 999.
        seed: of the noise; record i has its own, whatever the batch.
    """
    backbone, device = pipe.backbone(), pipe.device
    latents = encode_pictures(pipe, [Image.fromarray(record.image) for record in records])
    noise = torch.stack([_noise(latents.shape[1:], record, seed) for record in records]).to(latents)
    timestep = torch.tensor(time, device=device)
    noised = pipe.scheduler.add_noise(latents, noise, timestep.expand(len(records)))
    captions = [record.caption for record in records]
    text = encode_prompts(pipe, captions)
    tokenizers = [t for t in (pipe.tokenizer, getattr(pipe, "tokenizer_2", None)) if t is not None]
    prompts = [[caption] * len(tokenizers) for caption in captions]
    weights = token_weights(tokenizers, prompts, [[record.words[0]] for record in records], text.embeds.shape[1])
    conditions = Conditions(
        text=text,
        negative=None,
        token_weights=weights.to(device),
        strengths=torch.ones(1, device=device),
        regions=None,
        references=None,
    )
    whole = replace(settings, scope=1.0, rule=RULES["top-share"])
    with backbone.installed():
        masks, _ = guidance_branch(backbone, noised, timestep, conditions, whole)
    return masks[:, 0].float().cpu()


def mask_report(
    pipe,
    records: Sequence[Record],
    variants: dict[str, MaskSettings],
    times: Sequence[int] = TIMES,
    batch_size: int = 8,
) -> list[MaskRow]:
    """Mean IoU with the true masks for every variant and timestep; records need at least one subject each."""
    rows = []
    for name, settings in variants.items():
        grid, pixels = {}, {}
        for time in times:
            pairs = []
            for start in range(0, len(records), batch_size):
                part = records[start : start + batch_size]
                scores = mask_scores(pipe, part, time, settings)
                pairs += [overlap(s.numpy(), record.masks[0]) for s, record in zip(scores, part, strict=True)]
            grid[time], pixels[time] = (bootstrap(column) for column in zip(*pairs, strict=True))
        rows.append(MaskRow(name=name, settings=settings, grid=grid, pixels=pixels))
    return rows


def overlap(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """IoU on the grid and at picture size, the largest scores kept up to the true mask's area in both.

    Args:
        scores: (G, g).
        truth: bool (H, W), not empty.
    """
    shape = scores.shape
    shares = np.asarray(Image.fromarray(truth.astype(np.float32)).resize(shape[::-1], Image.Resampling.BOX))
    cells = shares >= 0.5
    if not cells.any():
        # A subject thinner than half a cell: the cells it fills most stand for it.
        cells = top_share(shares, max(1, round(truth.mean() * shares.size)) / shares.size)
    on_grid = mask_iou(top_share(scores, cells.mean()), cells)
    large = Image.fromarray(scores.astype(np.float32)).resize(truth.shape[::-1], Image.Resampling.BILINEAR)
    return on_grid, mask_iou(top_share(np.asarray(large), truth.mean()), truth)


def _noise(shape: tuple[int, ...], record: Record, seed: int) -> Tensor:
    index = int(record.attributes.get("index", 0))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + index))


def held_out_records(world, count: int) -> list[Record]:
    """The first `count` records of one subject each, with a visible mask."""
    records, index = [], 0
    while len(records) < count:
        record = world.record(index)
        index += 1
        if len(record.words) == 1 and record.masks[0].mean() > 0.02:
            records.append(record)
    return records


def table(rows: Sequence[MaskRow], times: Sequence[int] = TIMES) -> list[list[str]]:
    """Header and lines: variant, IoU on the grid at each timestep, and at picture size."""
    header = ["mask", *[f"t = {time}" for time in times], *[f"t = {time}, pixels" for time in times]]
    lines = [
        [row.name, *[str(row.grid[time]) for time in times], *[str(row.pixels[time]) for time in times]] for row in rows
    ]
    return [header, *lines]


def resized(record: Record, size: tuple[int, int]) -> Record:
    """The record with its picture and masks at (height, width) pixels."""
    height, width = size
    if record.image.shape[:2] == (height, width):
        return record
    image = np.asarray(Image.fromarray(record.image).resize((width, height), Image.Resampling.LANCZOS))
    masks = [Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST) for mask in record.masks]
    return replace(record, image=image, masks=np.stack([np.asarray(mask) for mask in masks]))


def fitted(pipe, records: Sequence[Record]) -> list[Record]:
    """The records at the model's own size."""
    size = pipe.native_size
    return [resized(record, size) for record in records]

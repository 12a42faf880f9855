"""The miniature's ControlNet: outlines of figures, on the frozen base."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor

from realcustom.hub.bundled import model_folder
from realcustom.miniature.builders import build_controlnet
from realcustom.miniature.world import BASE
from realcustom.training.base import tokenize
from realcustom.training.config import CheckpointSettings, OptimizerSettings, Parts, TrainConfig, hold_and_decay
from realcustom.training.control import ControlGrid, ControlLoss, OutlinedStickers, export_controlnet
from realcustom.training.feeding import feed_batches
from realcustom.training.miniature import load_base
from realcustom.training.objective import noisier_timesteps
from realcustom.training.precision import quick_precision

SUBJECTS = Path(os.environ.get("REALCUSTOM_SUBJECTS", "subjects"))
BASE_MODEL = Path(model_folder("miniature"))
FIRST = 20_000_000  # of its records, which neither base nor adapter has seen
OUTSIDE = 0.3  # weight of the error outside all figures


def recipe(
    out: Path = Path("outputs/controlnet"),
    base: Path = BASE_MODEL,
    subjects: Path = SUBJECTS,
    steps: int = 3_000,
    minutes: float = 0.0,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> TrainConfig:
    """About 50,000 pictures, drawn as they are needed. `base` is the shipped miniature or an exported base.

    `minutes` ends the training after so long if its steps have not; 0 is no limit.
    """
    return TrainConfig(
        name="miniature-controlnet",
        out=out,
        build=partial(build, base, subjects),
        steps=steps,
        minutes=minutes or None,
        batch_size=batch_size,
        precision=quick_precision(),
        ema_decay=0.995,
        optimizer=OptimizerSettings(
            learning_rate=learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            schedule=partial(hold_and_decay, warmup=50, decay=0.3, floor=0.05),
        ),
        checkpoint=CheckpointSettings(every_minutes=4),
        log_every=25,
        sample_every=250,
        seed=seed,
    )


def build(base: Path, subjects: Path) -> Parts:
    """The ControlNet starts from the U-Net's own encoder."""
    networks = load_base(base)
    tokenizer, scheduler, unet = networks["tokenizer"], networks["scheduler"], networks["unet"]
    if not torch.accelerator.is_available():
        unet.set_attn_processor(AttnProcessor())  # explicit products train faster on a CPU than fused attention
    source = OutlinedStickers(subjects, BASE, tokenizer, first=FIRST)
    shown = OutlinedStickers(subjects, BASE, tokenizer).batch(np.arange(16))
    empty = torch.from_numpy(tokenize(tokenizer, [""])[0]).long()
    return Parts(
        trained={"controlnet": build_controlnet(unet)},
        frozen={name: networks[name] for name in ("unet", "vae", "text_encoder")},
        # Where a figure stands is decided at high noise, as its colours are.
        loss=ControlLoss(
            scheduler=scheduler, empty_tokens=empty, draw=partial(noisier_timesteps, power=2.0), outside=OUTSIDE
        ),
        data=partial(feed_batches, source=source),
        sample=ControlGrid(scheduler=scheduler, records=shown, empty_tokens=empty),
        export=export_controlnet,
    )

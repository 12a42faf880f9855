"""The miniature's autoencoder, trained on the sticker world drawn on the fly."""

import os
from functools import partial
from pathlib import Path

import torch

from realcustom.data.world import WorldSettings
from realcustom.miniature.builders import build_vae
from realcustom.training.autoencoder import AutoencoderLoss, export_autoencoder, reconstructions
from realcustom.training.config import CheckpointSettings, OptimizerSettings, Parts, TrainConfig, hold_and_decay
from realcustom.training.feeding import feed_batches
from realcustom.training.precision import quick_precision
from realcustom.training.stickers import StickerPictures

SUBJECTS = Path(os.environ.get("REALCUSTOM_SUBJECTS", "subjects"))


def recipe(
    out: Path = Path("outputs/autoencoder"),
    subjects: Path = SUBJECTS,
    steps: int = 10_000,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    workers: int = 1,
    seed: int = 0,
) -> TrainConfig:
    """160,000 pictures; the learning rate falls to zero over the last third."""
    return TrainConfig(
        name="miniature-autoencoder",
        out=out,
        build=partial(build, subjects, workers, seed),
        steps=steps,
        batch_size=batch_size,
        precision=quick_precision(),
        optimizer=OptimizerSettings(
            learning_rate=learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            schedule=partial(hold_and_decay, warmup=200, decay=0.35, floor=0.02),
        ),
        checkpoint=CheckpointSettings(every_minutes=5),
        log_every=50,
        sample_every=500,
        seed=seed,
    )


def build(subjects: Path, workers: int, seed: int) -> Parts:
    """Channels-last weights are twice as fast on a CPU here."""
    settings = WorldSettings(seed=seed, style=0.15)
    vae = build_vae().to(memory_format=torch.channels_last)
    shown = StickerPictures(subjects, WorldSettings(seed=seed + 1, split="held-out")).batch(range(8))["pixels"]
    return Parts(
        trained={"vae": vae},
        loss=AutoencoderLoss(),
        data=partial(feed_batches, source=StickerPictures(subjects, settings), workers=workers),
        sample=lambda modules, step: reconstructions(modules, shown),
        export=export_autoencoder,
    )

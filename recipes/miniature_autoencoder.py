"""The miniature's autoencoder, trained on the sticker world: drawn on the fly, or the pictures of a latent cache."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from realcustom.data.world import WorldSettings
from realcustom.miniature.builders import LATENT_CHANNELS, build_vae
from realcustom.training.autoencoder import AutoencoderLoss, export_autoencoder, reconstructions, to_signed
from realcustom.training.config import (
    Batch,
    CheckpointSettings,
    Feed,
    OptimizerSettings,
    Parts,
    TrainConfig,
    hold_and_decay,
)
from realcustom.training.feeding import feed_batches
from realcustom.training.folding import decode_mostly_folded, decode_whole, widen_latents
from realcustom.training.optimizers import muon
from realcustom.training.precision import quick_precision
from realcustom.training.resident import draw_growing, mirrored_half
from realcustom.training.stickers import StickerPictures

SUBJECTS = Path(os.environ.get("REALCUSTOM_SUBJECTS", "subjects"))


def recipe(
    out: Path = Path("outputs/autoencoder"),
    subjects: Path = SUBJECTS,
    pictures: str = "",
    start: str = "",
    latent_channels: int = 16,
    steps: int = 10_000,
    minutes: float = 0.0,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    noise: float = 0.05,
    squared: float = 2.0,
    equivariance: float = 0.25,
    nested: float = 0.25,
    workers: int = 1,
    compile: bool = False,
    seed: int = 0,
) -> TrainConfig:
    """160,000 pictures; the learning rate falls to zero over the last third.

    `pictures` is the folder of a latent cache, whose pictures are used while they are still being drawn; empty draws
    own ones by `workers` processes. `start` is an exported autoencoder to go on from; more `latent_channels` than it
    has widen it, 0 keeps its own, or those of `build_vae`. `noise`, `squared`, `equivariance` and `nested` are those of
    `AutoencoderLoss`. `minutes` ends the training after so long if its steps have not; 0 is no limit.
    """
    return TrainConfig(
        name="miniature-autoencoder",
        out=out,
        build=partial(
            build,
            AutoencoderLoss(
                noise=noise,
                squared=squared,
                equivariance=equivariance,
                nested=nested,
                decode=decode_whole if compile else decode_mostly_folded,  # what is folded is not compiled
            ),
            Pictures(subjects, pictures, workers, seed),
            partial(start_network, start, latent_channels),
            compile,
        ),
        steps=steps,
        minutes=minutes or None,
        batch_size=batch_size,
        precision=quick_precision(),
        optimizer=OptimizerSettings(
            learning_rate=learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            schedule=partial(hold_and_decay, warmup=200, decay=0.35, floor=0.02),
            build=muon,
        ),
        checkpoint=CheckpointSettings(every_minutes=5),
        log_every=50,
        sample_every=500,
        seed=seed,
    )


@dataclass(frozen=True)
class Pictures:
    """Cut-outs, a latent cache's folder or "", processes that draw where there is none, and their seed."""

    subjects: Path
    folder: str
    workers: int
    seed: int

    def data(self) -> Callable[[Feed], Iterator[Batch]]:
        """Endless batches of {"pixels": uint8 (B, 3, H, W)}."""
        if self.folder:
            return partial(draw_growing, folder=self.folder, name="images", finish=mirrored_half)
        source = StickerPictures(self.subjects, WorldSettings(seed=self.seed, style=0.15))
        return partial(feed_batches, source=source, workers=self.workers)


def build(
    loss: AutoencoderLoss, pictures: Pictures, network: Callable[[Tensor], AutoencoderTiny], compile: bool
) -> Parts:
    """Channels-last weights are twice as fast on a CPU here. What is compiled are the halves that the loss calls."""
    unseen = WorldSettings(seed=pictures.seed + 1, split="held-out")
    shown = StickerPictures(pictures.subjects, unseen).batch(range(8))["pixels"]
    vae = network(shown).to(memory_format=torch.channels_last)
    if compile:
        for half in (vae.encoder, vae.decoder):
            half.compile(dynamic=False)
    return Parts(
        trained={"vae": vae},
        loss=loss,
        data=pictures.data(),
        sample=lambda modules, step: reconstructions(modules, shown),
        export=export_autoencoder,
    )


def start_network(start: str, latent_channels: int, pictures: Tensor) -> AutoencoderTiny:
    """From random weights, or an earlier export, widened where it is narrower; pictures uint8 (B, 3, H, W)."""
    if not start:
        return build_vae(latent_channels or LATENT_CHANNELS)
    vae = AutoencoderTiny.from_pretrained(start)
    if latent_channels in (0, vae.config.latent_channels):
        return vae
    return widen_latents(vae, latent_channels, to_signed(pictures))

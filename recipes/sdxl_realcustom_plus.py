"""RealCustom++ on SDXL.

Published or released: SigLIP so400m/14-384 and DINOv2-L/14 with registers, both frozen, references squashed to 768 px,
cross-layer cross-scale projector, visual keys and values in all 70 cross-attention layers, curriculum from
reconstruction to re-contextualisation, no mask in training, reference dropout 0.1. Ours, since the paper gives none:
stage lengths and shares, batch size, learning rate, 100,000 steps, warm-up, weight average, Min-SNR.
"""

from functools import partial
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline

from realcustom.encoders.image import ReferenceEncoder
from realcustom.models.adapter import RealCustomAdapter
from realcustom.models.unet import UNetBackbone
from realcustom.training.adapter import Dropout
from realcustom.training.backbones import adapter_parts, load_base, random_data
from realcustom.training.base import tokenize
from realcustom.training.config import CheckpointSettings, OptimizerSettings, Parts, TrainConfig, constant
from realcustom.training.curriculum import Curriculum
from realcustom.training.dry import IMAGE_SIZE, dry_base_xl, dry_reference_encoder
from realcustom.training.streams import Framing, stream_batches

DROPOUT = Dropout(text=0.05, reference=0.05, both=0.05)


def recipe(
    out: Path = Path("outputs/sdxl-realcustom-plus"),
    base: str = "stabilityai/stable-diffusion-xl-base-1.0",
    shards: str = "data/shards",
    steps: int = 100_000,
    batch_size: int = 2,
    accumulate: int = 2,
    processes: int = 16,
    workers: int = 4,
    precision: str = "bf16",
    shard: bool = True,
    dry: bool = False,
) -> TrainConfig:
    """`shards` is what `realcustom data prepare` wrote; `dry` takes tiny random networks and noise, and five steps.

    64 samples a step on 16 GPUs. `shard` splits the adapter's optimiser state over the processes.
    """
    if dry:
        build, steps, batch_size = build_dry, 5, 2
    else:
        build = partial(build_real, base, shards, steps * batch_size * accumulate * processes, workers)
    return TrainConfig(
        name="sdxl-realcustom-plus",
        out=out,
        build=build,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        precision=precision,
        ema_decay=0.9999,
        optimizer=OptimizerSettings(learning_rate=2e-5, schedule=partial(constant, warmup=1000)),
        checkpoint=CheckpointSettings(every_steps=2000, every_minutes=30, keep=3),
        log_every=1 if dry else 50,
        shard=shard,
        gradient_checkpointing=True,
    )


def build_real(base: str, shards: str, samples: int, workers: int) -> Parts:
    """1024 px pictures, 128 x 128 latents, 768 px references."""
    networks = load_base(StableDiffusionXLPipeline, base)
    encoder = ReferenceEncoder.from_backbones()
    framing = Framing(size=1024, reference_size=encoder.pixel_size, tokenize=partial(tokenize, networks["tokenizer"]))
    data = partial(
        stream_batches, pattern=shards, framing=framing, curriculum=Curriculum(), samples=samples, workers=workers
    )
    adapter = build_adapter(networks["unet"], encoder)
    return adapter_parts(
        networks, encoder, adapter, data, dtype=torch.bfloat16, base_name=base, dropout=DROPOUT, min_snr=5.0
    )


def build_dry() -> Parts:
    """The same layout with random weights."""
    networks, encoder = dry_base_xl(), dry_reference_encoder()
    data = random_data(networks["tokenizer"], IMAGE_SIZE, encoder.pixel_size)
    adapter = build_adapter(networks["unet"], encoder)
    return adapter_parts(networks, encoder, adapter, data, dropout=DROPOUT, min_snr=5.0)


def build_adapter(unet, encoder) -> RealCustomAdapter:
    """The cross-layer cross-scale projector as the paper describes it."""
    width = unet.config.cross_attention_dim
    projector = {"kind": "cross-layer-cross-scale", "vision_dim": encoder.feature_dim, "out_dim": width}
    return RealCustomAdapter.for_backbone(UNetBackbone(unet), projector=projector)

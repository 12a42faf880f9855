"""RealCustom (CVPR 2024) on Stable Diffusion v1.5.

Published: Stable Diffusion, CLIP image features, scoring module and visual keys and values trained, epsilon MSE without
loss weights, learning rate 1e-5, 160,000 iterations on 16 A100, gamma_num ~ U[0.3, 1], picture and reference the same.
Ours: batch size 4 a process (64 in all on 16), ViT-L/14, condition dropout, warm-up, weight average.
"""

from functools import partial
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from realcustom.encoders.image import ClipReferenceEncoder
from realcustom.models.adapter import RealCustomAdapter
from realcustom.models.unet import UNetBackbone
from realcustom.training.backbones import adapter_parts, load_base, random_data
from realcustom.training.base import tokenize
from realcustom.training.config import CheckpointSettings, OptimizerSettings, Parts, TrainConfig, constant
from realcustom.training.curriculum import reconstruction_only
from realcustom.training.dry import IMAGE_SIZE, dry_base, dry_clip_encoder
from realcustom.training.streams import Framing, stream_batches


def recipe(
    out: Path = Path("outputs/sd15-realcustom"),
    base: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    clip: str = "openai/clip-vit-large-patch14",
    shards: str = "data/shards",
    steps: int = 160_000,
    batch_size: int = 4,
    processes: int = 16,
    workers: int = 4,
    precision: str = "bf16",
    dry: bool = False,
) -> TrainConfig:
    """`shards` is what `realcustom data prepare` wrote; `dry` takes tiny random networks and noise, and five steps."""
    if dry:
        build, steps, batch_size = build_dry, 5, 2
    else:
        build = partial(build_real, base, clip, shards, steps * batch_size * processes, workers)
    return TrainConfig(
        name="sd15-realcustom",
        out=out,
        build=build,
        steps=steps,
        batch_size=batch_size,
        precision=precision,
        ema_decay=0.9999,
        optimizer=OptimizerSettings(learning_rate=1e-5, schedule=partial(constant, warmup=1000)),
        checkpoint=CheckpointSettings(every_steps=2000, every_minutes=30, keep=3),
        log_every=1 if dry else 50,
        gradient_checkpointing=True,
    )


def build_real(base: str, clip: str, shards: str, samples: int, workers: int) -> Parts:
    """512 px pictures, 64 x 64 latents, 224 px references."""
    networks = load_base(StableDiffusionPipeline, base)
    encoder = ClipReferenceEncoder.from_backbone(clip)
    framing = Framing(size=512, reference_size=encoder.pixel_size, tokenize=partial(tokenize, networks["tokenizer"]))
    data = partial(
        stream_batches,
        pattern=shards,
        framing=framing,
        curriculum=reconstruction_only(),
        samples=samples,
        workers=workers,
    )
    adapter = build_adapter(networks["unet"], encoder)
    return adapter_parts(networks, encoder, adapter, data, dtype=torch.bfloat16, base_name=base)


def build_dry() -> Parts:
    """The same layout with random weights."""
    networks, encoder = dry_base(), dry_clip_encoder()
    data = random_data(networks["tokenizer"], IMAGE_SIZE, encoder.pixel_size)
    return adapter_parts(networks, encoder, build_adapter(networks["unet"], encoder), data)


def build_adapter(unet, encoder) -> RealCustomAdapter:
    """Plain tokens in front of the scoring module."""
    width = unet.config.cross_attention_dim
    return RealCustomAdapter.for_backbone(
        UNetBackbone(unet),
        projector={"kind": "plain", "vision_dim": encoder.feature_dim, "out_dim": width},
        scoring={"feature_dim": width, "text_dim": width, "latent_channels": unet.config.in_channels},
    )

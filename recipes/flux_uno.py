"""UNO on FLUX.1-dev: a LoRA that reads references.

Released: rank 512 in every block, clean references on diagonal positions, times shifted by the true number of tokens,
guidance 1, plain mean squared error, AdamW with betas 0.9 and 0.999, weight decay 0.01, gradients cut at 1, prompts
dropped at 0.1, 512 px buckets; stage I with one subject, stage II with several (paper, Sec. 3.3). Ours: the stages'
lengths, and a learning rate below the release's default of 1e-2, which its weights need not have been trained with.
"""

from functools import partial
from pathlib import Path

import torch
from diffusers import FluxPipeline

from realcustom.data.uno_rows import UnoRows
from realcustom.models.uno_lora import SharedLora
from realcustom.training.backbones import load_base
from realcustom.training.base import tokenize
from realcustom.training.config import CheckpointSettings, OptimizerSettings, Parts, TrainConfig, constant
from realcustom.training.dry import NoiseRows, dry_flux
from realcustom.training.uno import uno_parts


def recipe(
    out: Path = Path("outputs/flux-uno"),
    base: str = "black-forest-labs/FLUX.1-dev",
    single: str = "data/single.json",
    several: str = "data/several.json",
    steps: int = 20_000,
    single_steps: int = 10_000,
    batch_size: int = 1,
    accumulate: int = 2,
    rank: int = 512,
    learning_rate: float = 1e-4,
    resolution: int = 512,
    workers: int = 4,
    precision: str = "bf16",
    shard: bool = True,
    dry: bool = False,
) -> TrainConfig:
    """`single` and `several` are lists in the release's format; `dry` takes tiny random networks and noise."""
    if dry:
        steps, single_steps, batch_size, accumulate, rank = 4, 2, 2, 1, 4
        build = partial(build_dry, single_steps, rank)
    else:
        lists = ((single, single_steps * accumulate), (several, None))
        build = partial(build_real, base, lists, rank, resolution, workers)
    return TrainConfig(
        name="flux-uno",
        out=out,
        build=build,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        precision=precision,
        ema_decay=None,
        optimizer=OptimizerSettings(learning_rate=learning_rate, schedule=partial(constant, warmup=100)),
        checkpoint=CheckpointSettings(every_steps=1000, every_minutes=30, keep=3),
        log_every=1 if dry else 50,
        shard=shard,
        gradient_checkpointing=True,
    )


def build_real(base: str, lists, rank: int, resolution: int, workers: int) -> Parts:
    """The transformer and its text encoders in bfloat16, the LoRA in float32."""
    networks = load_base(FluxPipeline, base)
    tokenizers = {
        "tokens": partial(tokenize, networks["tokenizer"]),
        "tokens_2": partial(tokenize, networks["tokenizer_2"]),
    }
    stages = [(UnoRows(file, tokenizers, resolution), batches) for file, batches in lists]
    lora = SharedLora(networks["transformer"], rank)
    return uno_parts(networks, lora, stages, resolution, dtype=torch.bfloat16, workers=workers)


def build_dry(single_steps: int, rank: int) -> Parts:
    """The same layout with random weights and noise."""
    networks = dry_flux()
    lengths = [networks[name].model_max_length for name in ("tokenizer", "tokenizer_2")]
    stages = [(NoiseRows(1, *lengths), single_steps), (NoiseRows(2, *lengths), None)]
    return uno_parts(networks, SharedLora(networks["transformer"], rank), stages, resolution=64)

"""What a training run is made of: `TrainConfig` (numbers) and `Parts` (networks, loss, data). Needs no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

Modules = Mapping[str, Any]
"""Name -> network, trained and frozen ones together, as losses and samplers get them."""

Batch = Mapping[str, Any]
"""Name -> tensor whose first axis is the sample."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Where in the data a process reads: batches `start` onwards of its share.

    start: index of the next batch of this process (every process has the same number of batches behind it).
    batch_size: samples of one batch of this process.
    seed: of the shuffling.
    rank, world: this process and the number of processes; their batches are disjoint.
    """

    start: int
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a recipe's `build` returns, everything built and ready.

    trained: networks whose weights change and are saved.
    frozen: networks that the loss needs as they are.
    loss: (modules, batch, generator) -> (scalar loss, {name: scalar metric}); every random number comes from generator.
    data: Feed -> endless iterator of batches; the same Feed gives the same batches.
    sample: (modules, step) -> uint8 array (H, W, 3), a picture of what the weights can do; None for no pictures.
    export: (modules, folder) -> None, writes the trained networks in their own formats; None for checkpoints only.
    close: called when the run ends, to give back what build has taken; None for nothing.
    """

    trained: Mapping[str, Any]
    loss: Callable[[Modules, Batch, Any], tuple[Any, dict[str, Any]]]
    data: Callable[[Feed], Iterator[Batch]]
    frozen: Mapping[str, Any] = field(default_factory=dict)
    sample: Callable[[Modules, int], Any] | None = None
    export: Callable[[Modules, Path], None] | None = None
    close: Callable[[], None] | None = None


def constant(step: int, steps: int, *, warmup: int = 0) -> float:
    """Learning-rate factor: linear warm-up over `warmup` steps, then 1."""
    return min(1.0, (step + 1) / (warmup + 1))


def cosine(step: int, steps: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine down to `floor` at the last step."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))


def hold_and_decay(step: int, steps: int, *, warmup: int = 0, decay: float = 0.2, floor: float = 0.0) -> float:
    """Learning-rate factor: linear warm-up, 1, and over the last `decay` share of the steps linearly down to `floor`.

    A run can be prolonged before the decay begins without having spent its learning rate.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = (steps - step) / max(1.0, decay * steps)
    return floor + (1 - floor) * max(0.0, min(1.0, left))


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Numbers of the optimiser.

    schedule: (step, steps) -> factor of `learning_rate`.
    max_grad_norm: longer gradients are shortened to it; None does not clip.
    build: (parameters by name, settings) -> torch optimiser, as in `realcustom.training.optimizers`; None for AdamW.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    schedule: Callable[[int, int], float] = field(default_factory=lambda: partial(constant, warmup=100))
    build: Callable[[Mapping[str, nn.Parameter], OptimizerSettings], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When to save, and how many to keep. A checkpoint is also written at the end, on Ctrl-C and on SIGTERM."""

    every_steps: int | None = None
    every_minutes: float | None = 10.0
    keep: int = 2


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    name: of the run, for trackers and messages.
    out: folder of logs, checkpoints, pictures and the exported networks.
    build: makes the `Parts`; called once, after torch was seeded.
    steps: optimiser steps in all.
    minutes: after which the training ends if its steps have not, building included; its learning rate follows the clock
        where that is ahead of the steps, so that it decays in time. None for no limit. What was trained then depends on
        the machine's speed: a resumed run goes on with the time that is left, but equals no uninterrupted one.
    batch_size: samples of one forward pass of one process.
    accumulate: forward passes of one optimiser step.
    precision: "no" (fp32), "bf16" or "fp16" autocast; the weights that are trained stay fp32.
    ema_decay: of the weight average that is sampled and exported; None for none.
    shard: with several processes, shard the trained networks (FSDP `fully_shard`) instead of copying them (DDP).
    gradient_checkpointing: recompute activations in the backward pass of diffusers' networks.
    compile: names of networks to run through `torch.compile`, minutes at the start against some tenths of each step.
    trackers: names that accelerate knows ("tensorboard", "wandb"), beside the log that is always written.
    """

    name: str
    out: Path
    build: Callable[[], Parts]
    steps: int
    minutes: float | None = None
    batch_size: int = 16
    accumulate: int = 1
    precision: str = "bf16"
    ema_decay: float | None = 0.999
    optimizer: OptimizerSettings = OptimizerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log_every: int = 50
    sample_every: int | None = None
    seed: int = 0
    shard: bool = False
    gradient_checkpointing: bool = False
    compile: tuple[str, ...] = ()
    trackers: tuple[str, ...] = ()

    def __post_init__(self):
        if self.precision not in ("no", "bf16", "fp16"):
            raise ValueError(f'The precision is "{self.precision}", but must be "no", "bf16" or "fp16".')
        for name in ("steps", "batch_size", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"The training's {name} is {getattr(self, name)}, but must be at least 1.")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"The training's minutes are {self.minutes}, but must be above 0.")
        if self.checkpoint.keep < 1:
            raise ValueError("At least one checkpoint must be kept: set checkpoint.keep to 1 or more.")

    def replace(self, **changes) -> TrainConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def describe(self) -> dict[str, Any]:
        """The configuration as plain JSON values, for logs and checkpoints; functions by name and arguments."""
        return _plain(self)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, partial):
        return {"function": _plain(value.func), "arguments": _plain([*value.args, value.keywords])}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__qualname__", str(value))

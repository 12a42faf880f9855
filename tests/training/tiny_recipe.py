"""A training of a few hundred weights, run by the tests as a recipe; with random numbers and dropout if asked."""

import ctypes
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from realcustom.training import checkpoints
from realcustom.training.config import CheckpointSettings, OptimizerSettings, Parts, TrainConfig, cosine
from realcustom.training.feeding import feed_batches
from realcustom.training.optimizers import muon


class Numbers:
    """64 fixed samples."""

    size = 64

    def __init__(self):
        random = np.random.default_rng(0)
        self.x = random.normal(size=(64, 8)).astype(np.float32)
        self.y = (self.x @ random.normal(size=(8, 4))).astype(np.float32)

    def batch(self, indices):
        return {"x": torch.from_numpy(self.x[indices]), "y": torch.from_numpy(self.y[indices])}


def loss(modules, batch, generator, noise):
    x = batch["x"] + noise * torch.randn(batch["x"].shape, generator=generator)
    error = (modules["net"](x) - batch["y"]) ** 2
    return error.mean(), {"worst": error.max().detach()}


def build(noise, break_at, workers):
    net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1 if noise else 0.0), nn.GELU(), nn.Linear(16, 4))

    def breaking(modules, batch, generator):
        value, metrics = loss(modules, batch, generator, noise)
        build.calls = getattr(build, "calls", 0) + 1
        return (value * float("nan") if build.calls == break_at else value), metrics

    return Parts(
        trained={"net": net},
        loss=breaking,
        data=partial(feed_batches, source=Numbers(), workers=workers),
        sample=lambda modules, step: np.zeros((4, 4, 3), np.uint8),
        export=lambda modules, folder: save_weights(modules["net"], folder),
    )


def save_weights(net, folder):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.clone() for name, tensor in net.state_dict().items()}, folder / "net.pt")


def die_in_save(number):
    """Kill this process by SIGKILL in the middle of its `number`-th save, after half of the files were written."""
    save_file, saves = checkpoints.save_file, []

    def save(tensors, path):
        if Path(path).name.startswith("optimizer"):
            saves.append(path)
            if len(saves) == number:
                Path(path).write_bytes(b"half a file")
                os.kill(os.getpid(), signal.SIGKILL)
        save_file(tensors, path)

    checkpoints.save_file = save


def abort_at_teardown():
    """This process aborts while it is taken down, as torch's gloo threads now and then do."""
    libc = ctypes.CDLL(None)
    libc.on_exit(libc.abort, None)


def recipe(
    out: Path = Path("outputs/tiny"),
    steps: int = 12,
    batch_size: int = 4,
    accumulate: int = 1,
    noise: float = 0.1,
    every_steps: int = 5,
    keep: int = 2,
    break_at: int = 0,
    die_in_save_number: int = 0,
    workers: int = 0,
    shard: bool = False,
    precision: str = "no",
    compile: str = "",
    abort: bool = False,
    matrices: bool = False,
) -> TrainConfig:
    if abort:
        abort_at_teardown()
    if die_in_save_number:
        die_in_save(die_in_save_number)
    build.calls = 0
    return TrainConfig(
        name="tiny",
        out=out,
        build=partial(build, noise, break_at, workers),
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        precision=precision,
        optimizer=OptimizerSettings(
            learning_rate=1e-2, schedule=partial(cosine, warmup=2), build=muon if matrices else None
        ),
        checkpoint=CheckpointSettings(every_steps=every_steps, every_minutes=None, keep=keep),
        log_every=3,
        sample_every=6,
        shard=shard,
        compile=tuple(filter(None, compile.split(","))),
    )

"""Training data that lies in the memory of the device that computes: no worker, no copy and no waiting in the loop.

Batches are drawn with replacement. Which samples make up batch k depends on the seed, the process and k alone, so a run
can start anywhere, as with `feed_batches`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .config import Batch, Feed
from .latents import chunks_of

LOOK_EVERY = 50  # batches, for new chunks

Finish = Callable[[Mapping[str, Tensor]], Batch]
"""Rows as they are stored -> the batch as a loss reads it, on the device."""


def resident(arrays: Mapping[str, np.ndarray], device: str | torch.device | None = None) -> dict[str, Tensor]:
    """Arrays of N rows each as tensors on a device.

    Args:
        arrays: name -> (N, ...).
        device: None takes the accelerator where there is one, else the CPU.

    Raises:
        ValueError: the arrays differ in their number of rows, or have none.
    """
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or min(counts.values()) < 1:
        raise ValueError(f"Resident data need as many rows of each kind, and at least one: {counts}.")
    return {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in arrays.items()}


def draw_batches(feed: Feed, rows: Mapping[str, Tensor], finish: Finish = dict) -> Iterator[Batch]:
    """An endless iterator over resident rows, from batch `feed.start` on; with `functools.partial` a `Parts.data`.

    Args:
        feed: the position.
        rows: name -> (N, ...), as `resident` makes them.
        finish: what is done to the drawn rows, for instance another type.
    """
    first = next(iter(rows.values()))
    generator = torch.Generator(first.device)
    number = feed.start
    while True:
        place = (feed.seed, number, feed.rank)
        generator.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))
        chosen = torch.randint(len(first), (feed.batch_size,), generator=generator, device=first.device)
        yield finish({name: values[chosen] for name, values in rows.items()})
        number += 1


def draw_growing(feed: Feed, folder: str | Path, name: str, finish: Finish = dict) -> Iterator[Batch]:
    """As `draw_batches`, of a cache that other processes still draw: a batch comes from one of its finished chunks.

    Which chunks there are depends on the clock, and so do the batches.

    Args:
        feed: the position.
        folder: of the cache; waited for until it holds a chunk.
        name: of the array to read, for instance "images".
        finish: as for `draw_batches`; gets {name: (B, ...)}.
    """
    held: list[Tensor] = []
    random = np.random.default_rng((feed.seed, feed.start, feed.rank))
    for number in itertools.count():
        if number % LOOK_EVERY == 0:
            found = _waited_for(folder, at_least=1)
            held += [resident({name: np.load(chunk / f"{name}.npy")})[name] for chunk in found[len(held) :]]
        rows = held[random.integers(len(held))]
        chosen = torch.from_numpy(random.integers(len(rows), size=feed.batch_size)).to(rows.device, non_blocking=True)
        yield finish({name: rows[chosen]})


def _waited_for(folder: str | Path, at_least: int) -> list[Path]:
    while len(found := chunks_of(folder)) < at_least:
        time.sleep(0.2)
    return found


def mirrored_half(rows: Mapping[str, Tensor]) -> Batch:
    """{"images": uint8 (B, H, W, 3)} -> {"pixels": uint8 (B, 3, H, W)}, every second one mirrored, which doubles the
    pictures for nothing."""
    pixels = rows["images"].permute(0, 3, 1, 2).clone(memory_format=torch.channels_last)
    pixels[::2] = pixels[::2].flip(-1)
    return {"pixels": pixels}

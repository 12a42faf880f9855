"""From a source that answers indices to an endless stream of batches that can start anywhere.

Which samples make up batch k depends on the seed and k alone, so the data position of a run is one number.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from .config import Batch, Feed


class Source(Protocol):
    """Samples by index. `size` None means endless: every index is a new sample, read in order."""

    size: int | None

    def batch(self, indices: np.ndarray) -> Batch:
        """Tensors of the samples with these indices."""


class _Batches(Dataset):
    """Batch number -> batch, for worker processes."""

    def __init__(self, source: Source, feed: Feed):
        self.source = source
        self.feed = feed
        self.epoch = -1
        self.order = np.zeros(0, dtype=np.int64)

    def __getitem__(self, number: int) -> Batch:
        feed = self.feed
        first = (number * feed.world + feed.rank) * feed.batch_size
        positions = np.arange(first, first + feed.batch_size)
        if self.source.size is None:
            return self.source.batch(positions)
        return self.source.batch(np.array([self._index(position) for position in positions]))

    def _index(self, position: int) -> int:
        """The sample at a place of the endless sequence of shuffled epochs."""
        epoch, place = divmod(int(position), self.source.size)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = np.random.default_rng((self.feed.seed, epoch)).permutation(self.source.size)
        return int(self.order[place])


def _outlive_stop_signals(worker: int) -> None:
    """Stop signals often reach the whole process group, but the loop needs its workers until it has saved.

    A second SIGTERM ends the worker, so that it never outlives its parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class _From:
    """Numbers from `start` on, as a sampler."""

    def __init__(self, start: int):
        self.start = start

    def __iter__(self) -> Iterator[int]:
        number = self.start
        while True:
            yield number
            number += 1


def feed_batches(feed: Feed, source: Source, workers: int = 0) -> Iterator[Batch]:
    """An endless iterator over `source`, from batch `feed.start` on; with `functools.partial` a `Parts.data`.

    Args:
        feed: the position.
        source: gives samples by index.
        workers: processes that prepare batches ahead; 0 prepares them in this process.

    Raises:
        ValueError: the source is empty.
    """
    if source.size is not None and source.size < 1:
        raise ValueError("The training data is empty: point the recipe at data that holds at least one record.")
    return iter(
        DataLoader(
            _Batches(source, feed),
            sampler=_From(feed.start),
            batch_size=None,
            num_workers=workers,
            worker_init_fn=_outlive_stop_signals,
        )
    )

"""Records streamed from shards into training: shuffled, split over processes and workers, resumable exactly.

The order of an epoch is a pure function of (shards, seed, epoch, rank, ranks, batch size, workers), so a run that
stopped after `position` samples continues with the very next one and reads only the shards it still needs.
"""

import copy
import glob
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from realcustom.data.records import Record
from realcustom.data.shards import count_samples, raw_samples, record_of


@dataclass(frozen=True, kw_only=True)
class Shard:
    """url: what `webdataset` can open (a path, http(s)://, s3 through pipe:). count: its number of samples."""

    url: str
    count: int


def find_shards(pattern: str) -> tuple[Shard, ...]:
    """Shards of a glob ("data/*.tar"), a brace pattern ("https://host/s-{000000..000099}.tar") or one folder.

    Counts come from index.json beside the shards; local shards without it are counted by reading their headers.
    """
    folder = Path(pattern)
    if "://" in pattern:
        from webdataset.shardlists import expand_urls

        return _with_remote_counts(tuple(expand_urls(pattern)))
    paths = sorted(folder.glob("*.tar")) if folder.is_dir() else [Path(path) for path in sorted(glob.glob(pattern))]
    if not paths:
        raise ValueError(f"No shards match {pattern!r}.")
    counts = {parent: _counts(parent / "index.json") for parent in {path.parent for path in paths}}
    return tuple(
        Shard(url=str(path), count=counts[path.parent].get(path.name) or count_samples(path)) for path in paths
    )


def epoch_shards(shards: Sequence[Shard], seed: int, epoch: int, reader: int, readers: int) -> list[Shard]:
    """The shards one reader reads in this epoch, in order; readers share the shuffled list in turn."""
    if len(shards) < readers:
        raise ValueError(f"{len(shards)} shards are too few for {readers} readers; write smaller shards.")
    order = np.random.default_rng([seed, epoch]).permutation(len(shards))
    return [shards[place] for place in order[reader::readers]]


class ShardStream(torch.utils.data.IterableDataset):
    """One epoch of records; `at(epoch, position)` gives the stream to iterate next.

    position: samples this rank has consumed in the epoch. With DataLoader workers, batch_size must be the loader's
    (batches come from the workers in turn) and position a multiple of it; every reader gives the same number of whole
    batches, so ranks stay in step and the remainder of an epoch is left out.
    group: shards shuffled together in memory.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        seed: int = 0,
        batch_size: int = 1,
        rank: int = 0,
        ranks: int = 1,
        group: int = 2,
        decode: Callable[[dict], Record] = record_of,
    ):
        self.shards, self.decode = tuple(shards), decode
        self.seed, self.batch_size, self.group = seed, batch_size, group
        self.rank, self.ranks = rank, ranks
        self.epoch, self.position = 0, 0

    def at(self, epoch: int, position: int = 0) -> "ShardStream":
        """The same stream starting at a sample of an epoch."""
        stream = copy.copy(self)
        stream.epoch, stream.position = epoch, position
        return stream

    def samples_per_epoch(self, workers: int = 0) -> int:
        """Samples each rank gives per epoch when its loader has this many workers."""
        return self._batches(max(1, workers)) * self.batch_size * max(1, workers)

    def __iter__(self) -> Iterator[Record]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        if workers > 1 and self.position % self.batch_size:
            raise ValueError(f"position {self.position} is not a multiple of the batch size {self.batch_size}.")
        batches, rest = divmod(self.position, self.batch_size)
        # A loader takes batch b from worker b % workers and starts at worker 0 again after a restart, so the workers
        # change roles: role r has given the batches r, r + workers, ... before this position.
        role = (worker + batches) % workers
        reader = self.rank * workers + role
        shards = epoch_shards(self.shards, self.seed, self.epoch, reader, self.ranks * workers)
        done = (batches + workers - 1 - role) // workers * self.batch_size + (rest if workers == 1 else 0)
        end = self._batches(workers) * self.batch_size
        for sample in self._raw(shards, reader, done, end):
            yield self.decode(sample)

    def _batches(self, workers: int) -> int:
        """Whole batches that even the reader with the fewest samples can give."""
        readers = self.ranks * workers
        least = min(
            sum(shard.count for shard in epoch_shards(self.shards, self.seed, self.epoch, reader, readers))
            for reader in range(readers)
        )
        return least // self.batch_size

    def _raw(self, shards: list[Shard], reader: int, start: int, end: int) -> Iterator[dict]:
        """Samples start..end of a reader's epoch, permuted within groups of shards; skipped groups are not read."""
        place = 0
        for number in range(0, len(shards), self.group):
            part = shards[number : number + self.group]
            count = sum(shard.count for shard in part)
            first, last = max(0, start - place), min(count, end - place)
            if first < last:
                samples = [sample for shard in part for sample in raw_samples(shard.url)]
                if len(samples) != count:
                    raise ValueError(
                        f"{part[0].url} and its group hold {len(samples)} samples, index.json says {count}."
                    )
                order = np.random.default_rng([self.seed, self.epoch, reader, number]).permutation(count)
                for index in order[first:last]:
                    yield samples[index]
                    samples[index] = {}
            place += count


def _counts(index: Path) -> dict[str, int]:
    return json.loads(index.read_text()) if index.is_file() else {}


def _with_remote_counts(urls: tuple[str, ...]) -> tuple[Shard, ...]:
    from webdataset.gopen import gopen

    shards, known = [], {}
    for url in urls:
        parent, name = url.rsplit("/", 1)
        if parent not in known:
            try:
                with gopen(f"{parent}/index.json") as stream:
                    known[parent] = json.loads(stream.read())
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{parent}/index.json cannot be read; write it with realcustom's write_index."
                ) from error
        if name not in known[parent]:
            raise ValueError(f"{parent}/index.json does not list {name}.")
        shards.append(Shard(url=url, count=known[parent][name]))
    return tuple(shards)

"""Prepared shards as training batches for the real backbones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from realcustom.data.records import Record
from realcustom.data.streaming import ShardStream, find_shards

from .config import Batch, Feed
from .curriculum import Curriculum


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How records become arrays: `size` of the picture and `reference_size` in pixels, both squares.

    The picture is cropped around its centre, the reference squashed, as the pipelines do.
    """

    size: int
    reference_size: int
    tokenize: Callable[[list[str]], np.ndarray]

    def __call__(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """pixels, references, own (the picture as a reference): uint8 (B, 3, h, w); tokens (B, T); sizes (B, 6)."""
        pictures = [Image.fromarray(record.image) for record in records]
        references = [_reference(record) for record in records]
        return {
            "pixels": _stack([_square(picture, self.size) for picture in pictures]),
            "references": _stack([reference.resize((self.reference_size,) * 2) for reference in references]),
            "own": _stack([picture.resize((self.reference_size,) * 2) for picture in pictures]),
            "tokens": torch.from_numpy(self.tokenize([record.caption for record in records])).long(),
            "sizes": torch.tensor([_sizes(picture, self.size) for picture in pictures]),
        }


def stream_batches(
    feed: Feed, *, pattern: str, framing: Framing, curriculum: Curriculum, samples: int, workers: int = 0
) -> Iterator[Batch]:
    """Endless batches from shards; with `functools.partial` a `Parts.data`.

    Args:
        feed: the position.
        pattern: of the shards, as `find_shards` takes it.
        framing: of the records.
        curriculum: its share of reconstruction is applied; difficulty is what the shards hold.
        samples: of the whole training, all processes together.
        workers: processes that read and decode.
    """
    stream = ShardStream(
        find_shards(pattern), seed=feed.seed, batch_size=feed.batch_size, rank=feed.rank, ranks=feed.world
    )
    epoch, done = divmod(feed.start * feed.batch_size, stream.samples_per_epoch(workers))
    number = feed.start
    while True:
        loader = DataLoader(
            stream.at(epoch, done), batch_size=feed.batch_size, num_workers=workers, collate_fn=framing, drop_last=True
        )
        for batch in loader:
            place = number * feed.world + feed.rank
            stage = curriculum.stage(min(place * feed.batch_size / samples, 1.0))
            yield choose_references(batch, stage.reconstruction, seed=(feed.seed, place))
            number += 1
        epoch, done = epoch + 1, 0


def choose_references(batch: dict[str, Tensor], reconstruction: float, seed: tuple[int, int]) -> dict[str, Tensor]:
    """Replace a random share of the references by the pictures themselves."""
    own = batch.pop("own")
    chosen = torch.from_numpy(np.random.default_rng(seed).random(len(own)) < reconstruction)
    return {**batch, "references": torch.where(chosen[:, None, None, None], own, batch["references"])}


def _reference(record: Record) -> Image.Image:
    """One of the record's references, the same at every reading; the picture itself where it has none."""
    if not record.references:
        return Image.fromarray(record.image)
    return Image.fromarray(random.Random(record.caption).choice(record.references))


def _square(picture: Image.Image, size: int) -> Image.Image:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side)).resize((size, size))


def _sizes(picture: Image.Image, size: int) -> tuple[int, ...]:
    """SDXL's sizes: original height and width, crop top and left after scaling, target height and width."""
    scale = size / min(picture.size)
    top, left = (round((length * scale - size) / 2) for length in (picture.height, picture.width))
    return (picture.height, picture.width, top, left, size, size)


def _stack(pictures: Sequence[Image.Image]) -> Tensor:
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(rearrange(arrays, "b h w c -> b c h w").copy())

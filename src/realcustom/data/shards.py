"""The sticker world written as WebDataset shards, so that a cluster can train from object storage.

A sample is `KEY.png` (picture), `KEY.reference0.png`, ..., `KEY.mask0.png`, ... (one per target word) and `KEY.json`
({"caption", "words", "attributes"}).
"""

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from realcustom.data.records import Record
from realcustom.data.world import StickerWorld


def sample_of(record: Record, key: str) -> dict:
    """The record as a WebDataset sample: field name -> bytes."""
    sample: dict = {"__key__": key, "png": _png(record.image)}
    for place, reference in enumerate(record.references):
        sample[f"reference{place}.png"] = _png(reference)
    for place, mask in enumerate(record.masks):
        sample[f"mask{place}.png"] = _png(mask.astype(np.uint8) * 255)
    facts = {"caption": record.caption, "words": list(record.words), "attributes": record.attributes}
    sample["json"] = json.dumps(facts).encode()
    return sample


def record_of(sample: dict) -> Record:
    """The record of a WebDataset sample: the inverse of `sample_of`."""
    facts = json.loads(sample["json"])
    count = len(facts["words"])
    image = _pixels(sample["png"], "RGB")
    blank = np.zeros(image.shape[:2], dtype=bool)
    fields = [f"mask{k}.png" for k in range(count)]
    masks = [_pixels(sample[name], "L") > 127 if name in sample else blank for name in fields]
    return Record(
        image=image,
        caption=facts["caption"],
        words=tuple(facts["words"]),
        references=tuple(_pixels(sample[f"reference{k}.png"], "RGB") for k in range(count)),
        masks=np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), dtype=bool),
        attributes=facts.get("attributes", {}),
    )


def write_shards(world: StickerWorld, indices: range, folder: str | Path, *, per_shard: int = 1000) -> list[Path]:
    """Records of the indices as stickers-000000.tar, ...; shards that exist already are kept, so it resumes.

    The folder must be written with the same world and per_shard throughout; returns all shard paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, len(indices), per_shard):
        path = folder / f"stickers-{start // per_shard:06d}.tar"
        if not path.exists():
            part = indices[start : start + per_shard]
            write_shard((sample_of(world.record(index), f"{index:09d}") for index in part), path)
        paths.append(path)
    return paths


def write_shard(samples: Iterable[dict], path: Path) -> int:
    """One tar, put in place whole or not at all; returns the number of samples."""
    try:
        import webdataset
    except ImportError as error:
        raise ValueError("Writing shards needs webdataset: pip install webdataset.") from error

    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    try:
        with unfinished.open("wb") as stream, webdataset.TarWriter(stream, mtime=0) as writer:
            for sample in samples:
                writer.write(sample)
                count += 1
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _pixels(data: bytes, mode: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))

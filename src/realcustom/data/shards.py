"""The sticker world written as WebDataset shards, so that a cluster can train from object storage.

A sample is `KEY.png` (picture), `KEY.reference0.png`, ..., `KEY.mask0.png`, ... (one per target word) and `KEY.json`
({"caption", "words", "attributes"}). Pictures may be .jpg too; real data may lack references (the picture itself is
the reference then) and masks (empty then). `index.json` beside the shards counts their samples.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
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
    places = range(len(facts["words"]))
    image = _picture(sample, "", None)
    first = _picture(sample, "reference0.", image)
    blank = np.zeros(image.shape[:2], dtype=bool)
    names = [f"mask{place}.png" for place in places]
    masks = [_pixels(sample[name], "L") > 127 if name in sample else blank for name in names]
    return Record(
        image=image,
        caption=facts["caption"],
        words=tuple(facts["words"]),
        references=tuple(_picture(sample, f"reference{place}.", first) for place in places),
        masks=np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), dtype=bool),
        attributes=facts.get("attributes", {}),
    )


def raw_samples(url: str) -> Iterator[dict]:
    """Undecoded samples of one shard in file order: field name -> bytes, and "__key__"."""
    try:
        from webdataset.tariterators import tarfile_samples
    except ImportError as error:
        raise ValueError("Reading shards needs webdataset: pip install webdataset.") from error

    yield from tarfile_samples([{"url": url}])


def write_index(folder: str | Path) -> dict[str, int]:
    """Counts the samples of every tar in the folder into index.json, {"file name": count}; known counts are kept."""
    folder = Path(folder)
    index = folder / "index.json"
    known = json.loads(index.read_text()) if index.is_file() else {}
    counts = {path.name: known.get(path.name) or count_samples(path) for path in sorted(folder.glob("*.tar"))}
    unfinished = folder / f".index.json.{os.getpid()}"
    unfinished.write_text(json.dumps(counts, indent=0))
    unfinished.replace(index)
    return counts


def count_samples(path: Path) -> int:
    """Number of different keys in a local tar."""
    with tarfile.open(path) as archive:
        return len({name.split("/")[-1].split(".")[0] for name in archive.getnames()})


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
    write_index(folder)
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


def _picture(sample: dict, name: str, otherwise: np.ndarray | None) -> np.ndarray:
    """The sample's .png or .jpg of this name as uint8 (H, W, 3)."""
    for suffix in ("png", "jpg"):
        if name + suffix in sample:
            return _pixels(sample[name + suffix], "RGB")
    if otherwise is None:
        raise ValueError(f"Sample {sample.get('__key__')} has no picture (.png or .jpg).")
    return otherwise


def _pixels(data: bytes, mode: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))

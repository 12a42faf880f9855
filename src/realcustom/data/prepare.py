"""Real data to shards: filter, find target words, resize with masks, write; killed at any moment it resumes.

A shard and its sidecar (`part-...json`: what was consumed, dropped and seen) are each put in place whole, tar first,
so a restart repeats at most the shard that was being written and writes it with the same bytes.
"""

import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from realcustom.data.nouns import TargetWord, find_target_words, singular
from realcustom.data.shards import write_index, write_shard
from realcustom.data.sources import RawExample, open_picture, polygon_mask


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """size: side of the square pictures in pixels (short side resized, centre kept). words: most target words a
    picture. Pictures are dropped when their short side is under `least_side`, longer than `most_aspect` times that,
    nearly one colour (standard deviation under `least_contrast` of 255), or seen before (equal difference hash);
    captions when they have fewer or more words than the range, or no target word. part, parts: this worker of many.
    """

    size: int = 512
    per_shard: int = 1000
    words: int = 2
    least_side: int = 256
    most_aspect: float = 2.5
    least_contrast: float = 6.0
    caption_words: tuple[int, int] = (2, 60)
    quality: int = 95
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.part < self.parts:
            raise ValueError(f"part is {self.part} of {self.parts}; it must lie in 0..{self.parts - 1}.")


@dataclass
class Report:
    """consumed = kept + sum(dropped.values()); dropped counts by reason."""

    consumed: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)
    shards: list[Path] = field(default_factory=list)


class Dropped(Exception):
    """Why an example is left out, in a few words that the report counts."""


def prepare(examples: Iterable[RawExample], folder: str | Path, settings: PrepareSettings | None = None) -> Report:
    """Writes real-PART-000000.tar, ... into folder and returns what was kept and dropped.

    Call it again with the same source and settings to continue; the source must yield the same order.
    """
    settings = settings or PrepareSettings()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report, seen = _resume(folder, settings)
    mine = islice(examples, settings.part, None, settings.parts)
    remaining = islice(mine, report.consumed, None)
    while True:
        stem = f"{settings.part:03d}-{len(report.shards):06d}"
        facts = write_part(remaining, folder, stem, settings, seen)
        if not facts["kept"]:
            report.consumed += facts["consumed"]
            report.dropped.update(facts["dropped"])
            break
        _add(report, facts, folder / f"real-{stem}.tar")
    if settings.parts == 1:
        write_index(folder)
    return report


def write_part(
    examples: Iterator[RawExample], folder: Path, stem: str, settings: PrepareSettings, seen: set[str]
) -> dict:
    """One shard real-STEM.tar of up to per_shard kept examples and its sidecar part-STEM.json; returns the sidecar.

    seen: difference hashes of pictures so far; grows. Without anything kept, no file is written.
    """
    state, fresh = Report(), []
    path = folder / f"real-{stem}.tar"
    if write_shard(_samples(examples, settings, state, (seen, fresh)), path) == 0:
        path.unlink()
    facts = {"consumed": state.consumed, "kept": state.kept, "dropped": dict(state.dropped), "hashes": fresh}
    if state.kept:
        _put(folder / f"part-{stem}.json", json.dumps(facts))
    return facts


def _samples(
    examples: Iterator[RawExample], settings: PrepareSettings, state: Report, hashes: tuple[set[str], list[str]]
) -> Iterator[dict]:
    seen, fresh = hashes
    for example in examples:
        state.consumed += 1
        try:
            sample, fingerprint = sample_from(example, settings)
            if fingerprint in seen and example.reference is None:
                raise Dropped("picture seen before")
        except Dropped as reason:
            state.dropped[str(reason)] += 1
            continue
        seen.add(fingerprint)
        fresh.append(fingerprint)
        state.kept += 1
        yield sample
        if state.kept == settings.per_shard:
            return


def sample_from(example: RawExample, settings: PrepareSettings) -> tuple[dict, str]:
    """One WebDataset sample (see shards.py) and the picture's difference hash. Raises Dropped with the reason.

    Without a reference picture, the sample has none and stands for reconstruction. Masks come from polygons, else
    boxes; attributes["mask_source"] says which, or is null and no mask is stored.
    """
    words = target_words(example, settings)
    picture = _opened(example.image)
    _check(picture, settings)
    sample: dict = {"__key__": example.key.replace(".", "_")}
    sample["jpg"] = _jpeg(_squared(picture, settings.size), settings.quality)
    if example.reference is not None:
        reference = _opened(example.reference)
        _check(reference, settings)
        sample["reference0.jpg"] = _jpeg(_squared(reference, settings.size), settings.quality)
    sources = set()
    for place, word in enumerate(words):
        mask, source = _mask(example, word, picture.size)
        if mask is not None:
            sources.add(source)
            squared = _squared(Image.fromarray(mask), settings.size)
            sample[f"mask{place}.png"] = _encoded(squared.point(lambda v: 255 * (v > 127)), "PNG")
    attributes = {
        "reconstruction": example.reference is None,
        "mask_source": "+".join(sorted(sources)) or None,
        "spans": [[word.start, word.end] for word in words],
    }
    facts = {"caption": example.caption, "words": [word.text for word in words], "attributes": attributes}
    sample["json"] = json.dumps(facts).encode()
    return sample, difference_hash(picture)


def target_words(example: RawExample, settings: PrepareSettings) -> tuple[TargetWord, ...]:
    """The given word, else the caption's nouns, those with a box first. Raises Dropped when there is none."""
    count = len(example.caption.split())
    if not settings.caption_words[0] <= count <= settings.caption_words[1]:
        raise Dropped("caption too short or too long")
    if example.word is not None:
        start = example.caption.lower().find(example.word.lower())
        if start < 0:
            raise Dropped("word not in caption")
        end = start + len(example.word)
        return (TargetWord(text=example.caption[start:end], start=start, end=end),)
    found = find_target_words(example.caption)
    if not found:
        raise Dropped("no target word")
    boxed = example.boxes or {}
    found = sorted(found, key=lambda word: singular(word.text) not in boxed)[: settings.words]
    return tuple(sorted(found, key=lambda word: word.start))


def difference_hash(picture: Image.Image) -> str:
    """16 hexadecimal digits: signs of the horizontal differences of a 9 x 8 gray thumbnail."""
    small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(int)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def _opened(source: Path | bytes | Image.Image) -> Image.Image:
    try:
        return open_picture(source)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise Dropped("unreadable picture") from error


def _check(picture: Image.Image, settings: PrepareSettings) -> None:
    short, long = sorted(picture.size)
    if short < settings.least_side:
        raise Dropped("picture too small")
    if long > settings.most_aspect * short:
        raise Dropped("picture too long")
    thumbnail = np.asarray(picture.resize((32, 32), Image.Resampling.BOX))
    if thumbnail.std(axis=(0, 1)).max() < settings.least_contrast:
        raise Dropped("picture of one colour")


def _mask(example: RawExample, word: TargetWord, size: tuple[int, int]) -> tuple[np.ndarray | None, str]:
    """uint8 (H, W), 255 where the word's category is, from all its instances."""
    name = singular(word.text)
    if example.polygons and example.polygons.get(name):
        return polygon_mask(size, example.polygons[name]).astype(np.uint8) * 255, "segmentation"
    if example.boxes and example.boxes.get(name):
        mask = np.zeros((size[1], size[0]), dtype=np.uint8)
        for left, top, right, bottom in example.boxes[name]:
            mask[max(0, round(top)) : round(bottom), max(0, round(left)) : round(right)] = 255
        return mask, "box"
    return None, ""


def _squared(picture: Image.Image, size: int) -> Image.Image:
    """The central square, resized."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return picture.resize(
        (size, size), Image.Resampling.LANCZOS if picture.mode == "RGB" else Image.Resampling.BOX, box
    )


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    return _encoded(picture, "JPEG", quality=quality, subsampling=0)


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def _resume(folder: Path, settings: PrepareSettings) -> tuple[Report, set[str]]:
    report, seen = Report(), set()
    while True:
        stem = f"{settings.part:03d}-{len(report.shards):06d}"
        sidecar, path = folder / f"part-{stem}.json", folder / f"real-{stem}.tar"
        if not (sidecar.is_file() and path.is_file()):
            return report, seen
        facts = json.loads(sidecar.read_text())
        seen.update(facts["hashes"])
        _add(report, facts, path)


def _add(report: Report, facts: dict, path: Path) -> None:
    report.consumed += facts["consumed"]
    report.kept += facts["kept"]
    report.dropped.update(facts["dropped"])
    report.shards.append(path)


def _put(path: Path, text: str) -> None:
    """Write whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(path)

"""Readers of real data: each yields `RawExample`s lazily and always in the same order, so that preparation resumes.

Folders with sidecar captions, JSONL captions, COCO-style annotations, several views of one identity, WebDataset and
Hugging Face streams, and pairs synthesised by a base model.
"""

import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from realcustom.data.shards import raw_samples
from realcustom.data.vocabulary import article_of

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class RawExample:
    """One caption and picture, not yet opened, filtered or resized.

    image: a path, encoded bytes, or a PIL picture. word: the target word when the source knows it (it must stand in
    the caption). reference: another picture of the same subject, for re-contextualisation. boxes: category name ->
    (left, top, right, bottom) in pixels of the picture. polygons: category name -> flat x, y lists in pixels.
    """

    key: str
    image: Path | bytes | Image.Image
    caption: str
    word: str | None = None
    reference: Path | bytes | Image.Image | None = None
    boxes: dict[str, tuple[Box, ...]] | None = None
    polygons: dict[str, tuple[tuple[float, ...], ...]] | None = None


def image_folder(folder: str | Path) -> Iterator[RawExample]:
    """Pictures below a folder, captioned by a .txt file of the same name, else by the name of their own folder."""
    folder = _existing(folder)
    for path in _pictures(folder, recursive=True):
        sidecar = path.with_suffix(".txt")
        if sidecar.is_file():
            caption = sidecar.read_text(encoding="utf-8").strip()
        else:
            caption = _photo_of(_word_of(path.parent.name))
        yield RawExample(key=_key(path.relative_to(folder)), image=path, caption=caption)


def jsonl_captions(file: str | Path, images: str | Path) -> Iterator[RawExample]:
    """One JSON object a line: "image" (or "file_name"), "caption" (or "text"), and if known "word", "reference"."""
    images = _existing(images)
    with _existing(file).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            entry = json.loads(line)
            name, caption = entry.get("image", entry.get("file_name")), entry.get("caption", entry.get("text"))
            if name is None or caption is None:
                raise ValueError(f'Line {number} of {file} needs "image" and "caption".')
            yield RawExample(
                key=f"{number:09d}",
                image=images / name,
                caption=caption,
                word=entry.get("word"),
                reference=images / entry["reference"] if entry.get("reference") else None,
            )


def coco(captions: str | Path, images: str | Path, instances: str | Path | None = None) -> Iterator[RawExample]:
    """COCO caption annotations; with instance annotations, boxes and polygons by category name."""
    images = _existing(images)
    listing = json.loads(_existing(captions).read_text(encoding="utf-8"))
    files = {entry["id"]: entry["file_name"] for entry in listing["images"]}
    boxes: dict[int, dict[str, list[Box]]] = defaultdict(lambda: defaultdict(list))
    polygons: dict[int, dict[str, list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
    if instances is not None:
        found = json.loads(_existing(instances).read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in found["categories"]}
        for entry in found["annotations"]:
            x, y, width, height = entry["bbox"]
            name = names[entry["category_id"]]
            boxes[entry["image_id"]][name].append((x, y, x + width, y + height))
            if isinstance(entry.get("segmentation"), list):
                polygons[entry["image_id"]][name] += [tuple(ring) for ring in entry["segmentation"]]
    for entry in listing["annotations"]:
        image = entry["image_id"]
        yield RawExample(
            key=f"{image:012d}-{entry['id']}",
            image=images / files[image],
            caption=entry["caption"].strip(),
            boxes={name: tuple(found) for name, found in boxes[image].items()},
            polygons={name: tuple(found) for name, found in polygons[image].items()},
        )


def multi_view(folder: str | Path, pairs: int = 4) -> Iterator[RawExample]:
    """Re-contextualisation pairs from folders that hold several pictures (views, video frames) of one identity.

    The word of a folder comes from a subjects.json beside it ({"subjects": [{"subject", "class_word"}]}), else from
    the folder's name without digits. A view's caption is its .txt file if that contains the word, else "a photo of a
    WORD". Every picture becomes the target of up to `pairs` references, the others of its folder in turn.
    """
    folder = _existing(folder)
    words: dict[str, str] = {}
    for listing in (folder / "subjects.json", folder.parent / "subjects.json"):
        if listing.is_file():
            words = {entry["subject"]: entry["class_word"] for entry in json.loads(listing.read_text())["subjects"]}
            break
    for identity in sorted(path for path in folder.iterdir() if path.is_dir()):
        word = words.get(identity.name, _word_of(identity.name))
        views = _pictures(identity, recursive=False)
        for place, view in enumerate(views):
            for step in range(1, min(pairs, len(views) - 1) + 1):
                other = views[(place + step) % len(views)]
                yield RawExample(
                    key=f"{_key(view.relative_to(folder))}-{step}",
                    image=view,
                    caption=_view_caption(view, word),
                    word=word,
                    reference=other,
                )


def shards(urls: Iterable[str]) -> Iterator[RawExample]:
    """WebDataset shards of other projects: a picture and a .txt, .caption or .json ({"caption"}) per key."""
    for url in urls:
        for sample in raw_samples(url):
            image = next((sample[name] for name in ("jpg", "jpeg", "png", "webp") if name in sample), None)
            caption = sample.get("txt", sample.get("caption"))
            text = caption.decode() if caption is not None else json.loads(sample.get("json", b"{}")).get("caption")
            if image is not None and text:
                yield RawExample(key=sample["__key__"], image=image, caption=text.strip())


def rows(stream: Iterable[dict], image: str = "image", caption: str = "caption") -> Iterator[RawExample]:
    """Rows of a Hugging Face dataset, streaming or not; pictures are PIL or {"bytes"}, captions a text or a list."""
    for number, row in enumerate(stream):
        picture = row[image]
        picture = picture["bytes"] if isinstance(picture, dict) else picture
        text = row[caption]
        yield RawExample(key=f"{number:09d}", image=picture, caption=text if isinstance(text, str) else text[0])


def synthesised(
    generate: Callable[[str, int], Image.Image], subjects: Iterable[tuple[str, str]], contexts: tuple[str, ...]
) -> Iterator[RawExample]:
    """Pairs painted by a base model that is asked for the same subject twice in one wide picture.

    generate(prompt, seed) returns a picture about twice as wide as high; subjects are (word, description), e.g.
    ("dog", "a brown dog with one white ear"). The left half is the reference, the right half the target.
    """
    for number, (word, description) in enumerate(subjects):
        for place, context in enumerate(contexts):
            prompt = (
                f"two pictures side by side of the same {word}, {description}: on the left on a plain background, "
                f"on the right {context} in another pose"
            )
            wide = generate(prompt, number * len(contexts) + place)
            middle = wide.width // 2
            yield RawExample(
                key=f"{number:07d}-{place}",
                image=wide.crop((middle, 0, wide.width, wide.height)),
                caption=f"{article_of(word)} {word} {context}".strip(),
                word=word,
                reference=wide.crop((0, 0, middle, wide.height)),
            )


def polygon_mask(size: tuple[int, int], polygons: Iterable[tuple[float, ...]]) -> np.ndarray:
    """bool (H, W) from flat x, y polygons in pixels; size is (width, height)."""
    mask = Image.new("1", size)
    for ring in polygons:
        if len(ring) >= 6:
            ImageDraw.Draw(mask).polygon(list(ring), fill=1)
    return np.asarray(mask)


def open_picture(source: Path | bytes | Image.Image) -> Image.Image:
    """RGB picture; transparency is laid on white."""
    if isinstance(source, Image.Image):
        picture = source
    else:
        picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    return path


def _pictures(folder: Path, recursive: bool) -> list[Path]:
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)


def _key(path: Path) -> str:
    """A WebDataset key: no dots, no folders."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", path.with_suffix("").as_posix())


def _word_of(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", re.sub(r"\d+", " ", name)).strip().lower() or "object"


def _photo_of(word: str) -> str:
    return f"a photo of {article_of(word)} {word}".replace("  ", " ")


def _view_caption(view: Path, word: str) -> str:
    sidecar = view.with_suffix(".txt")
    if sidecar.is_file():
        caption = sidecar.read_text(encoding="utf-8").strip()
        if re.search(rf"\b{re.escape(word)}\b", caption):
            return caption
    return _photo_of(word)

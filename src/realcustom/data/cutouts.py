"""A folder of named RGBA cut-outs, kept in memory as small arrays ready for recolouring.

Expected layout: `subjects.json` with {"concepts": [{"word", "article", "images": [{"file", "style", "variant"}]}]}
beside the files it names, or, without that file, one folder of PNGs per word.
Shape letters: h, w height and width of the small cut-out in pixels; k colour clusters (at most 6).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from realcustom.data.colour import cluster, lab_to_rgb, rgb_to_lab
from realcustom.data.heads import HEADS
from realcustom.data.vocabulary import article_of

CLUSTERS = 6


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """One drawing of a word.

    name: "dog/noto". pixels: float32 (h, w, 3) in 0..255, colours continued into the transparent area so that
    resampling cannot draw a dark rim. alpha: uint8 (h, w). weights: float32 (h, w, k), soft membership of each pixel
    in each colour cluster, summing to 1. centres_lab, centres_rgb: (k, 3). shares: (k,) area share of each cluster.
    head: (x, top, width, height) of the head in pixels of this array; x is its middle.
    """

    name: str
    word: str
    pixels: np.ndarray
    alpha: np.ndarray
    weights: np.ndarray
    centres_lab: np.ndarray
    centres_rgb: np.ndarray
    shares: np.ndarray
    head: tuple[float, float, float, float]

    @property
    def area(self) -> float:
        """Opaque area in pixels of the small array."""
        return float(self.alpha.sum()) / 255.0


class CutoutFolder:
    """Reads cut-outs on first use and keeps them; what it returns depends on the files only."""

    def __init__(self, folder: str | Path, size: int = 112):
        """folder: see the module text. size: longest side in pixels of the arrays kept."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is not a folder of cut-outs; pass the folder that holds subjects.json.")
        self.size = size
        self.files, self.articles = _listing(self.folder)
        self._loaded: dict[str, Cutout] = {}

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self.files)

    def names(self, word: str) -> tuple[str, ...]:
        """Names of the cut-outs of a word, sorted."""
        if word not in self.files:
            raise ValueError(f"{self.folder} has no cut-outs of {word!r}; it has: {', '.join(self.files)}.")
        return tuple(self.files[word])

    def load(self, word: str, name: str) -> Cutout:
        if name not in self._loaded:
            self._loaded[name] = _read(self.files[word][name], word, name, self.size)
        return self._loaded[name]


def _listing(folder: Path) -> tuple[dict[str, dict[str, Path]], dict[str, str]]:
    """word -> {cut-out name -> file}, and word -> article."""
    listing = folder / "subjects.json"
    files: dict[str, dict[str, Path]] = {}
    articles: dict[str, str] = {}
    if listing.is_file():
        for concept in json.loads(listing.read_text())["concepts"]:
            # Other variants (faces, front views) differ so much in outline that they blur what a word looks like.
            main = [image for image in concept["images"] if image.get("variant", "main") == "main"]
            named = {Path(image["file"]).with_suffix("").as_posix(): folder / image["file"] for image in main}
            files[concept["word"]] = dict(sorted(named.items()))
            articles[concept["word"]] = concept["article"]
    else:
        for path in sorted(folder.glob("*/*.png")):
            word = path.parent.name.replace("_", " ")
            files.setdefault(word, {})[f"{path.parent.name}/{path.stem}"] = path
            articles[word] = article_of(word)
    if not files:
        raise ValueError(f"{folder} holds no cut-outs: expected subjects.json or one folder of PNG files per word.")
    return files, articles


def _read(path: Path, word: str, name: str, size: int) -> Cutout:
    picture = Image.open(path).convert("RGBA")
    picture = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    scale = size / max(picture.size)
    shape = (max(2, round(picture.width * scale)), max(2, round(picture.height * scale)))
    # Pillow's RGBa mode is premultiplied: resizing in it keeps transparent colours out of the edge.
    picture = picture.convert("RGBa").resize(shape, Image.Resampling.LANCZOS).convert("RGBA")
    values = np.asarray(picture)
    alpha = values[..., 3].copy()
    nearest = ndimage.distance_transform_edt(alpha < 200, return_distances=False, return_indices=True)
    pixels = values[..., :3][tuple(nearest)].astype(np.float32)
    lab = rgb_to_lab(pixels)
    centres = cluster(lab[alpha > 200], CLUSTERS)
    weights = _memberships(lab, centres)
    shares = weights[alpha > 127].mean(axis=0)
    return Cutout(
        name=name,
        word=word,
        pixels=pixels,
        alpha=alpha,
        weights=weights,
        centres_lab=centres,
        centres_rgb=lab_to_rgb(centres),
        shares=shares,
        head=_head(name, alpha),
    )


def _memberships(lab: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Soft weights (h, w, k): inverse fourth power of the colour distance, so edges between areas stay smooth."""
    distance = ((lab[:, :, None] - centres) ** 2).sum(axis=-1) + 4.0
    weights = distance**-2.0
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def _head(name: str, alpha: np.ndarray) -> tuple[float, float, float, float]:
    """(x, top, width, height) as marked by hand, or guessed: the silhouette's upper 30 percent without thin parts."""
    if name in HEADS:
        x, top, width, height = HEADS[name]
        return x * alpha.shape[1], top * alpha.shape[0], width * alpha.shape[1], height * alpha.shape[0]
    solid = alpha > 127
    thick = ndimage.binary_opening(solid, iterations=max(1, min(solid.shape) // 14))
    solid = thick if thick.any() else solid
    rows = np.flatnonzero(solid.any(axis=1))
    top, bottom = rows[0], rows[-1] + 1
    upper = solid[top : top + max(2, int(0.30 * (bottom - top)))]
    labels, count = ndimage.label(upper)
    if count > 1:
        upper = labels == 1 + np.argmax(ndimage.sum_labels(upper, labels, range(1, count + 1)))
    columns = np.flatnonzero(upper.any(axis=0))
    width = float(columns[-1] + 1 - columns[0])
    x = float(np.average(np.arange(upper.shape[1]), weights=upper.sum(axis=0))) + 0.5
    return x, float(top), width, min(0.9 * width, 0.7 * (bottom - top))

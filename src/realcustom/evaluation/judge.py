"""The sticker judge: a small image-text encoder that looks at a picture of the sticker world and says what it shows.

Shapes: N crops, (H, W) picture height and width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from .judge_network import StickerJudge, as_pixels
from .views import SMALLEST, found, subject_crop, surroundings

WEIGHTS = Path(__file__).parent / "judge_weights"
PICTURE_SIZE = 128


class Judge:
    """The judge's answers on PIL pictures of any size, one at a time or in batches."""

    def __init__(self, network: StickerJudge, batch_size: int = 32):
        self.network = network.eval()
        self.batch_size = batch_size

    @classmethod
    def load(cls, folder: str | Path = WEIGHTS) -> Judge:
        """The judge of a folder; by default the one that ships with the package.

        Raises:
            ValueError: there are no weights.
        """
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"There is no sticker judge in {folder}: train it with recipes/judge.py.")
        return cls(StickerJudge.from_pretrained(folder).float())

    def vocabulary(self, kind: str) -> list[str]:
        """The phrases of "words", "scenes", "styles", "accessories" or "colours"."""
        return list(self.network.config[kind])

    @torch.no_grad()
    def look(self, pictures: Sequence[Image.Image]) -> list[Sight]:
        """What each picture shows."""
        sights = []
        for part, out in self._batches(pictures):
            out = {name: out[name].softmax(dim=1).cpu().numpy() for name in ("words", "scene", "style")}
            for row, picture in enumerate(part):
                sights.append(Sight(self, picture, {name: values[row] for name, values in out.items()}))
        return sights

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Features (N, d) of whole pictures, for KID."""
        return np.concatenate([out["features"].cpu().numpy() for _, out in self._batches(pictures)])

    def _batches(self, pictures: Sequence[Image.Image]) -> Iterator[tuple[list[np.ndarray], dict[str, Tensor]]]:
        for start in range(0, len(pictures), self.batch_size):
            part = [at_size(picture) for picture in pictures[start : start + self.batch_size]]
            pixels = torch.from_numpy(rearrange(np.stack(part), "b h w c -> b c h w").copy())
            out = self.network(pixels.to(self.network.device).float() / 255)
            yield part, {name: values.float() for name, values in out.items()}

    @torch.no_grad()
    def identify(self, crops: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Identity embeddings (N, dim) of unit length and colour probabilities (N, colours) of `subject_crop`s."""
        answers = [self.network.crops(part) for part in self._parts(crops)]
        if not answers:
            width = self.network.config.identity_dim
            return np.zeros((0, width), np.float32), np.zeros((0, len(self.vocabulary("colours"))), np.float32)
        embeddings, colours = (torch.cat(values) for values in zip(*answers, strict=True))
        return embeddings.cpu().numpy(), colours.float().softmax(dim=1).cpu().numpy()

    @torch.no_grad()
    def worn(self, crops: Sequence[np.ndarray]) -> list[str | None]:
        """The accessory in each of the `surroundings` of a subject; None for none."""
        names = [None, *self.vocabulary("accessories")]
        return [names[int(row.argmax())] for part in self._parts(crops) for row in self.network.worn(part)]

    def _parts(self, crops: Sequence[np.ndarray]) -> Iterator[Tensor]:
        for start in range(0, len(crops), 2 * self.batch_size):
            yield as_pixels(np.stack(crops[start : start + 2 * self.batch_size]), self.network.device)


class Sight:
    """What the judge saw in one picture: probabilities by kind, with the pixels (H, W, 3) it looked at."""

    def __init__(self, judge: Judge, picture: np.ndarray, scores: dict[str, np.ndarray]):
        self.judge = judge
        self.picture = picture
        self.scores = scores

    @property
    def scene(self) -> str:
        return self._best("scene", self.judge.vocabulary("scenes"))

    @property
    def style(self) -> str | None:
        return self._best("style", [None, *self.judge.vocabulary("styles")])

    def accessory(self, word: str) -> str | None:
        """What the word's subject wears; None for nothing, or where the subject is not seen."""
        mask = self.mask(word)
        return None if mask is None else self.judge.worn([surroundings(self.picture, mask)])[0]

    @functools.cached_property
    def words(self) -> dict[str, float]:
        """Every word that is seen, with the share of the picture it fills."""
        names = self.judge.vocabulary("words")
        best = self.scores["words"].argmax(axis=0)
        shares = np.bincount(best.ravel(), minlength=1 + len(names))[1:] / best.size
        return {name: float(share) for name, share in zip(names, shares, strict=True) if share >= SMALLEST}

    def mask(self, word: str, others: Sequence[str] = ()) -> np.ndarray | None:
        """Where the word is, bool (H, W); None where nothing of a useful size is seen.

        A subject drawn so badly that it is taken for another word still counts as being there: where the word itself
        is not found, everything that is neither background nor one of the `others` is taken.
        """
        names = self.judge.vocabulary("words")
        scores = self.scores["words"]
        size, mask = self.picture.shape[1::-1], None
        if word in names:
            mask = found(scores[1 + names.index(word)] - scores[0], size)
        if mask is None:
            rest = [index for index, name in enumerate(names, 1) if name not in others]
            known = [0, *(names.index(name) + 1 for name in others if name in names)]
            mask = found(scores[rest].sum(axis=0) - scores[known].sum(axis=0), size)
        return mask

    def crop(self, word: str, others: Sequence[str] = ()) -> np.ndarray | None:
        """The word's subject alone, uint8 (C, C, 4); None where it is not seen."""
        mask = self.mask(word, others)
        return None if mask is None else subject_crop(self.picture, mask)

    def _best(self, kind: str, names: Sequence):
        return names[int(self.scores[kind].argmax())]


def at_size(picture: Image.Image) -> np.ndarray:
    """The picture as the judge reads it: uint8 (PICTURE_SIZE, PICTURE_SIZE, 3)."""
    picture = picture.convert("RGB")
    if picture.size != (PICTURE_SIZE, PICTURE_SIZE):
        picture = picture.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)
    return np.asarray(picture)

"""The sticker judge: a small image-text encoder that looks at a picture of the sticker world and says what it shows.

Nothing of it is shared with the generator: own networks, own training, own weights. Text is a closed vocabulary; the
rows of the heads are the embeddings of its phrases. Shapes: B pictures, N crops, W words, (h, w) = picture / 4.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from realcustom.data.vocabulary import ACCESSORY_PHRASES, COLOURS, DEFAULT_WORDS, SCENE_PHRASES, STYLES

from .views import largest_parts, subject_crop

WEIGHTS = Path(__file__).parent / "judge_weights"
PICTURE_SIZE = 128
SMALLEST = 0.008  # share of the picture below which a word counts as absent


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a skip connection."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def stage(before: int, width: int, blocks: int) -> nn.Sequential:
    """Half the resolution, then residual blocks."""
    return nn.Sequential(nn.Conv2d(before, width, 3, 2, 1), *[Residual(width) for _ in range(blocks)])


class StickerJudge(ModelMixin, ConfigMixin):
    """Two convolutional towers: one for whole pictures, one for crops of a subject."""

    @register_to_config
    def __init__(
        self,
        words: Sequence[str] = DEFAULT_WORDS,
        scenes: Sequence[str] = tuple(SCENE_PHRASES),
        styles: Sequence[str] = STYLES,
        accessories: Sequence[str] = tuple(ACCESSORY_PHRASES),
        colours: Sequence[str] = tuple(COLOURS),
        widths: Sequence[int] = (16, 40, 96, 192),
        crop_widths: Sequence[int] = (24, 48, 112, 224),
        identity_dim: int = 128,
    ):
        """
        Args:
            words, scenes, styles, accessories, colours: the phrases it knows, in the order of the heads' rows.
            widths: channels of the picture tower at 1/2, 1/4, 1/8 and 1/16 of the picture.
            crop_widths: channels of the crop tower.
            identity_dim: width of an identity's embedding.
        """
        super().__init__()
        one, two, three, four = widths
        self.stem = nn.Sequential(nn.Conv2d(3, one, 5, 2, 2), nn.SiLU())
        self.fine = stage(one, two, 1)
        self.middle = stage(two, three, 2)
        self.deep = stage(three, four, 3)
        self.up_middle = nn.Conv2d(four, three, 1)
        self.up_fine = nn.Conv2d(three, two, 1)
        self.merge_middle, self.merge_fine = Residual(three), Residual(two)
        self.word_head = nn.Conv2d(two, 1 + len(words), 1)
        self.accessory_head = nn.Conv2d(three, len(accessories), 1)
        # Summed over some 256 places against a constant 0 for "none": starts at "hardly anywhere".
        nn.init.constant_(self.accessory_head.bias, -7.0)
        self.scene_head = nn.Linear(four + three, len(scenes))
        self.style_head = nn.Linear(four + three, 1 + len(styles))
        first, *others = crop_widths
        stages = [stage(a, b, 1) for a, b in zip(crop_widths, others, strict=False)]
        self.crop_tower = nn.Sequential(nn.Conv2d(4, first, 5, 2, 2), Residual(first), *stages)
        pooled = 2 * crop_widths[-1]
        self.identity_head = nn.Linear(pooled, identity_dim)
        self.colour_head = nn.Linear(pooled, len(colours))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Scores of whole pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].

        Returns:
            logits: words (B, 1 + W, h, w) with the background first; scene (B, scenes) read outside the words; style
            (B, 1 + styles) and accessory (B, 1 + accessories) with "none" first; "features" (B, d) of the whole.
        """
        fine = self.fine(self.stem(2 * pictures - 1))
        middle = self.middle(fine)
        deep = self.deep(middle)
        middle = self.merge_middle(middle + grown(self.up_middle(deep), middle))
        fine = self.merge_fine(fine + grown(self.up_fine(middle), fine))
        words = self.word_head(fine)
        # Outside the subjects only, so that a scene is not guessed from who usually stands in it.
        behind = words.detach().float().softmax(dim=1)[:, :1].to(middle.dtype)
        scene = torch.cat([pooled_by(level, behind) for level in (deep, middle)], dim=1)
        whole = torch.cat([level.mean(dim=(2, 3)) for level in (deep, middle)], dim=1)
        places = rearrange(self.accessory_head(middle), "b a h w -> b a (h w)").float()
        worn = places.logsumexp(dim=2)
        return {
            "features": whole,
            "words": words,
            "scene": self.scene_head(scene),
            "style": self.style_head(whole),
            "accessory": torch.cat([torch.zeros_like(worn[:, :1]), worn], dim=1),
        }

    def crops(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (N, identity_dim) and colour logits (N, colours) of crops (N, 4, C, C) in [0, 1]."""
        features = self.crop_tower(crops)
        features = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        return F.normalize(self.identity_head(features).float(), dim=1), self.colour_head(features)


def grown(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear resize to the height and width of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def pooled_by(x: Tensor, weights: Tensor) -> Tensor:
    """Mean of (B, C, h, w) over positions, weighted by (B, 1, h', w')."""
    weights = F.interpolate(weights, size=x.shape[-2:], mode="area")
    return (x * weights).sum(dim=(2, 3)) / (weights.sum(dim=(2, 3)) + 1e-4)


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
            out = {name: logits.softmax(dim=1).cpu().numpy() for name, logits in out.items() if name != "features"}
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
        embeddings, colours = [], []
        for start in range(0, len(crops), 2 * self.batch_size):
            part = np.stack(crops[start : start + 2 * self.batch_size])
            pixels = torch.from_numpy(rearrange(part, "n h w c -> n c h w").copy()).to(self.network.device)
            embedding, colour = self.network.crops(pixels.float() / 255)
            embeddings.append(embedding.cpu().numpy())
            colours.append(colour.float().softmax(dim=1).cpu().numpy())
        if not embeddings:
            width = self.network.config.identity_dim
            return np.zeros((0, width), np.float32), np.zeros((0, len(self.vocabulary("colours"))), np.float32)
        return np.concatenate(embeddings), np.concatenate(colours)


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

    @property
    def accessory(self) -> str | None:
        return self._best("accessory", [None, *self.judge.vocabulary("accessories")])

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
        found = None
        if word in names:
            found = self._area(scores[1 + names.index(word)] - scores[0])
        if found is None:
            rest = [index for index, name in enumerate(names, 1) if name not in others]
            known = [0, *(names.index(name) + 1 for name in others if name in names)]
            found = self._area(scores[rest].sum(axis=0) - scores[known].sum(axis=0))
        return found

    def crop(self, word: str, others: Sequence[str] = ()) -> np.ndarray | None:
        """The word's subject alone, uint8 (C, C, 4); None where it is not seen."""
        mask = self.mask(word, others)
        return None if mask is None else subject_crop(self.picture, mask)

    def _area(self, lead: np.ndarray) -> np.ndarray | None:
        """Pixels where a score map (h, w) is above 0."""
        size = self.picture.shape[1::-1]
        mask = np.asarray(Image.fromarray(lead.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)) > 0
        if mask.mean() < SMALLEST:
            return None
        return largest_parts(mask)

    def _best(self, kind: str, names: Sequence):
        return names[int(self.scores[kind].argmax())]


def at_size(picture: Image.Image) -> np.ndarray:
    """The picture as the judge reads it: uint8 (PICTURE_SIZE, PICTURE_SIZE, 3)."""
    picture = picture.convert("RGB")
    if picture.size != (PICTURE_SIZE, PICTURE_SIZE):
        picture = picture.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)
    return np.asarray(picture)

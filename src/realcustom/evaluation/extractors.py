"""Feature extractors behind one signature, from local folders or hub ids through transformers.

Shapes: N pictures or texts, d feature width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .preprocessing import clip_preprocessing, imagenet_preprocessing

HUB_IDS = {
    "clip-b32": "openai/clip-vit-base-patch32",
    "clip-l14": "openai/clip-vit-large-patch14",
    "dino-s16": "facebook/dino-vits16",
    "dinov2-b14": "facebook/dinov2-base",
    "pickscore": "yuvalkirstain/PickScore_v1",
}
"""Where the published weights are; a local folder of the same format does as well."""


class ImageExtractor(Protocol):
    """Pictures to features."""

    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(N, d) float32."""


class TextExtractor(ImageExtractor, Protocol):
    """Pictures and texts to features of one space."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, d) float32."""


class ClipExtractor:
    """CLIPModel: projected image and text features (CLIP-I, CLIP-T)."""

    def __init__(self, model, tokenizer, batch_size: int = 32):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.preprocess = clip_preprocessing(model.config.vision_config.image_size)

    @classmethod
    def load(cls, source: str | Path, device: str | None = None) -> ClipExtractor:
        from transformers import CLIPModel, CLIPTokenizer

        model = _loaded(CLIPModel, source).to(device or "cpu")
        return cls(
            model, _loaded(CLIPTokenizer, source, model_max_length=model.config.text_config.max_position_embeddings)
        )

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(N, d) projected, not normalised."""
        return _batched(lambda part: self.model.get_image_features(self._pixels(part)), pictures, self.batch_size)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, d) projected, not normalised; texts are cut at the model's length."""
        return _batched(self._text_features, list(texts), self.batch_size)

    def scores(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        """(N,) logit scale times cosine of each picture with its own text: how PickScore and HPS rate."""
        first, second = self.images(pictures), self.texts(texts)
        cosine = (first * second).sum(1) / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))
        return cosine * float(self.model.logit_scale.detach().exp())

    def _pixels(self, part: Sequence[Image.Image]) -> Tensor:
        return self.preprocess(part).to(self.model.device, self.model.dtype)

    def _text_features(self, part: list[str]) -> Tensor:
        limit = self.model.config.text_config.max_position_embeddings
        encoded = self.tokenizer(part, padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        return self.model.get_text_features(**{name: encoded[name].to(self.model.device) for name in names})


class VitExtractor:
    """DINO (transformers ViTModel) or DINOv2 (Dinov2Model, Dinov2WithRegistersModel): the class token (DINO-I)."""

    def __init__(self, model, batch_size: int = 32, size: int | None = None):
        """size: input side in pixels where it is not the model's own (DINOv2 is used at 224 and configured at 518)."""
        self.model = model.eval()
        self.batch_size = batch_size
        self.preprocess = imagenet_preprocessing(size or min(224, model.config.image_size))

    @classmethod
    def load(cls, source: str | Path, device: str | None = None) -> VitExtractor:
        from transformers import AutoModel

        return cls(_loaded(AutoModel, source).to(device or "cpu"))

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(N, d), not normalised."""
        return _batched(self._features, pictures, self.batch_size)

    def _features(self, part: Sequence[Image.Image]) -> Tensor:
        pixels = self.preprocess(part).to(self.model.device, self.model.dtype)
        if pixels.shape[-1] == self.model.config.image_size:
            return self.model(pixels).last_hidden_state[:, 0]
        flexible = {} if self.model.config.model_type.startswith("dinov2") else {"interpolate_pos_encoding": True}
        return self.model(pixels, **flexible).last_hidden_state[:, 0]


@dataclass(frozen=True, kw_only=True)
class Extractors:
    """What a benchmark measures with. Preference models are optional: name -> object with `scores`."""

    clip: TextExtractor
    dino: ImageExtractor
    preferences: dict


def load_extractors(source: str, device: str | None = None) -> Extractors:
    """CLIP and DINO by name.

    Args:
        source: "standard" (CLIP ViT-B/32 and DINO ViT-S/16, the published protocol, from the hub or its cache),
            "tests-tiny" (small random models in exactly those formats: the path, not the numbers), or a folder with
            the subfolders clip and dino and, if wanted, pickscore, hps and image-reward.

    Raises:
        ValueError: what cannot be had, in one sentence.
    """
    if source == "standard":
        clip, dino = ClipExtractor.load(HUB_IDS["clip-b32"], device), VitExtractor.load(HUB_IDS["dino-s16"], device)
        return Extractors(clip=clip, dino=dino, preferences={})
    if source == "tests-tiny":
        from .tiny import write_tiny

        with tempfile.TemporaryDirectory() as tiny:
            write_tiny(Path(tiny))
            return from_folder(Path(tiny))
    folder = Path(source)
    if not (folder / "clip").is_dir() or not (folder / "dino").is_dir():
        raise ValueError(
            f'"{source}" names no extractors: give "standard", "tests-tiny", or a folder with subfolders clip and dino.'
        )
    return from_folder(folder, device)


def from_folder(folder: Path, device: str | None = None) -> Extractors:
    """The extractors of a folder with clip, dino and optional preference models."""
    from .image_reward import ImageReward

    preferences = {
        name: ClipExtractor.load(folder / name, device) for name in ("pickscore", "hps") if (folder / name).is_dir()
    }
    if (folder / "image-reward").is_dir():
        preferences["image-reward"] = ImageReward.load(folder / "image-reward", device)
    clip, dino = ClipExtractor.load(folder / "clip", device), VitExtractor.load(folder / "dino", device)
    return Extractors(clip=clip, dino=dino, preferences=preferences)


def _loaded(kind, source: str | Path, **options):
    try:
        return kind.from_pretrained(source, **options)
    except OSError as error:
        raise ValueError(
            f'The extractor "{source}" is neither a folder in transformers\' format nor to be had from the hub; '
            "without network, download it before and give its folder."
        ) from error


def _batched(features, items: Sequence, batch_size: int) -> np.ndarray:
    parts = []
    for start in range(0, len(items), batch_size):
        out = features(items[start : start + batch_size])
        parts.append(getattr(out, "pooler_output", out).float().cpu().numpy())
    if not parts:
        raise ValueError("There is nothing to extract features from.")
    return np.concatenate(parts)

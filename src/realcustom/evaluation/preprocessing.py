"""Pictures to the pixels that an extractor reads, with PIL alone.

An RGB picture is resized (bicubic, shorter side), cut at the centre, scaled to [0, 1] and normalised. CLIP: 224 then
224, CLIP's mean and deviation. DINO and DINOv2: 256 then 224, ImageNet's. Models of another input size use the same
proportions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """resize: shorter side in pixels; crop: side of the square cut from the centre; mean, std: per RGB channel."""

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(N, 3, crop, crop) float32."""
        return torch.stack([self._one(picture) for picture in pictures])

    def _one(self, picture: Image.Image) -> Tensor:
        picture = picture.convert("RGB")
        scale = self.resize / min(picture.size)
        size = tuple(max(self.resize, round(side * scale)) for side in picture.size)
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = (picture.width - self.crop) // 2, (picture.height - self.crop) // 2
        values = np.asarray(picture.crop((left, top, left + self.crop, top + self.crop)), dtype=np.float32) / 255
        return torch.from_numpy((values - np.float32(self.mean)) / np.float32(self.std)).permute(2, 0, 1)


def clip_preprocessing(size: int) -> Preprocessing:
    return Preprocessing(resize=size, crop=size, mean=CLIP_MEAN, std=CLIP_STD)


def imagenet_preprocessing(size: int) -> Preprocessing:
    return Preprocessing(resize=round(size * 256 / 224), crop=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)

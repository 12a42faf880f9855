"""Sticker-world records as training sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from realcustom.data.world import StickerWorld, WorldSettings

DIFFICULTY_STEPS = 16


class Stickers:
    """A world that is built where it is used, so that it travels to worker processes as a few settings."""

    def __init__(self, folder: str | Path, settings: WorldSettings, photographs: str | Path | None = None):
        self.folder = folder
        self.settings = settings
        self.photographs = photographs
        self._world: StickerWorld | None = None

    @property
    def world(self) -> StickerWorld:
        """The world, made at the first use in this process."""
        if self._world is None:
            self._world = StickerWorld(self.folder, self.settings, self.photographs)
        return self._world

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_world": None}


class StickerPictures(Stickers):
    """Endless pictures without captions: {"pixels": uint8 (B, 3, H, W)}."""

    size = None

    def batch(self, indices: np.ndarray) -> Mapping[str, torch.Tensor]:
        """Pictures composed on the spot."""
        pictures = np.stack([self.world.record(int(index)).image for index in indices])
        return {"pixels": torch.from_numpy(rearrange(pictures, "b h w c -> b c h w").copy())}


class StickerPairs(Stickers):
    """Records for a latent cache: the pose and size difference of the reference walks through 0..1 with the index.

    A record with several subjects gives one of their references.
    """

    def sample(self, index: int) -> dict:
        """image, reference: uint8 (H, W, 3); mask bool (H, W) of the reference's subject; figures bool (F, H, W), all
        that stands in the scene; caption; difficulty 0..1."""
        difficulty = index % DIFFICULTY_STEPS / (DIFFICULTY_STEPS - 1)
        record = self.world.record(index, difficulty=difficulty)
        subject = index // DIFFICULTY_STEPS % len(record.references)
        return {
            "image": record.image,
            "reference": record.references[subject],
            "mask": record.masks[subject],
            "figures": np.concatenate([record.masks, record.others]),
            "caption": record.caption,
            "difficulty": difficulty,
        }

"""Latents computed once: chunks of arrays on disk, written by worker processes and read by memory mapping.

A cache is a folder of chunks `chunk-00000/`, each complete or absent:
    latents.npy     float16 (N, C, h, w), scaled to unit variance
    captions.json   N captions
    references.npy  uint8 (N, H, W, 3), the subject in another picture (where references are cached)
    images.npy      uint8 (N, H, W, 3), the picture itself (with references; the reconstruction stage's reference)
    subjects.npy    uint8 (N, h, w), how much of each latent cell the reference's subject fills, 0..255 (the same)
    figures.npy     float16 (N, h, w), the `emphasis` of each latent cell (the same)
    difficulty.npy  float32 (N,), how far the reference's pose and size are from the picture's, 0..1
More records are added by asking for a larger number.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoModel
from einops import rearrange

from .autoencoder import to_signed
from .precision import quick_precision

CHUNK = 2048
ENCODED_AT_ONCE = 32
SMALLEST = 4.0  # what a cell of a very small figure weighs


class Pairs(Protocol):
    """What a cache is made of; must be picklable."""

    def sample(self, index: int) -> dict:
        """image uint8 (H, W, 3), caption, and for references: reference uint8 (H, W, 3), mask bool (H, W) of its
        subject in the picture, figures bool (F, H, W), all that stands in the scene, difficulty."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """count: records in all, rounded up to whole chunks. references: store references and pictures too.

    first: index of the first record, so that two caches of one source can differ.
    """

    count: int
    references: bool = False
    first: int = 0
    workers: int = 1


def cache_latents(pairs: Pairs, vae: str | Path, folder: str | Path, settings: CacheSettings) -> Path:
    """Compute the chunks that are missing.

    Args:
        pairs: gives the record of an index.
        vae: folder of the autoencoder.
        folder: of the cache.
        settings: how much, and by how many processes.

    Returns:
        The cache's folder.

    Raises:
        ValueError: the cache was made with another autoencoder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_autoencoder(folder, Path(vae))
    numbers = [number for number in range(-(-settings.count // CHUNK)) if not (folder / _name(number)).is_dir()]
    work = partial(_write_chunk, pairs, str(vae), folder, settings)
    if settings.workers < 2:
        for number in numbers:
            work(number)
        return folder
    with multiprocessing.get_context("spawn").Pool(settings.workers, initializer=_one_thread) as pool:
        for _ in pool.imap_unordered(work, numbers):
            pass
    return folder


class LatentCache:
    """A cache read by memory mapping: a `Source` for base (and, with references, adapter) training.

    Args:
        folder: of the cache.
        tokenize: list of captions -> int (N, T) token numbers; called once for all captions.
        count: records to use; None for all.
    """

    def __init__(self, folder: str | Path, tokenize: Callable[[list[str]], np.ndarray], count: int | None = None):
        chunks = sorted(Path(folder).glob("chunk-*"))
        if not chunks:
            raise ValueError(f"{folder} holds no cached latents: run cache_latents first.")
        self.captions = [caption for chunk in chunks for caption in json.loads((chunk / "captions.json").read_text())]
        self.tokens = tokenize(self.captions)
        self.latents = _Rows(chunks, "latents.npy")
        self.references = _Rows(chunks, "references.npy")
        self.images = _Rows(chunks, "images.npy")
        self.subjects = _Rows(chunks, "subjects.npy")
        self.figures = _Rows(chunks, "figures.npy")
        self.difficulty = np.concatenate([np.load(chunk / "difficulty.npy") for chunk in chunks])
        self.size = len(self.captions) if count is None else min(count, len(self.captions))

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """latents float16 (B, C, h, w), tokens int64 (B, T) and, with references, what a cell weighs (B, h, w):
        subjects bool, where the reference's subject is, and figures float16, `emphasis`."""
        batch = {
            "latents": torch.from_numpy(self.latents.take(indices)),
            "tokens": torch.from_numpy(self.tokens[indices].astype(np.int64)),
        }
        if self.subjects.paths[0].exists():
            batch["subjects"] = torch.from_numpy(self.subjects.take(indices) > 0)
        if self.figures.paths[0].exists():
            batch["figures"] = torch.from_numpy(self.figures.take(indices))
        return batch


class _Rows:
    """One array name over all chunks, addressed by record."""

    def __init__(self, chunks: list[Path], name: str):
        self.paths = [chunk / name for chunk in chunks]
        self._maps: dict[int, np.ndarray] = {}

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Copies of the rows (B, ...)."""
        return np.stack([self._chunk(index // CHUNK)[index % CHUNK] for index in map(int, indices)])

    def _chunk(self, number: int) -> np.ndarray:
        if number not in self._maps:
            self._maps[number] = np.load(self.paths[number], mmap_mode="r")
        return self._maps[number]

    def __getstate__(self) -> dict:
        return {"paths": self.paths, "_maps": {}}


def _write_chunk(pairs: Pairs, vae: str, folder: Path, settings: CacheSettings, number: int) -> None:
    encoder = AutoModel.from_pretrained(vae).eval().to(memory_format=torch.channels_last)
    samples = [pairs.sample(settings.first + number * CHUNK + row) for row in range(CHUNK)]
    unfinished = folder / f".unfinished-{_name(number)}-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    latents = np.concatenate(
        [_encode(encoder, samples[start : start + ENCODED_AT_ONCE]) for start in range(0, CHUNK, ENCODED_AT_ONCE)]
    )
    np.save(unfinished / "latents.npy", latents)
    np.save(unfinished / "difficulty.npy", np.array([sample.get("difficulty", 0.0) for sample in samples], np.float32))
    if settings.references:
        np.save(unfinished / "references.npy", np.stack([sample["reference"] for sample in samples]))
        np.save(unfinished / "images.npy", np.stack([sample["image"] for sample in samples]))
        size = latents.shape[-2:]
        np.save(unfinished / "subjects.npy", shares(np.stack([sample["mask"] for sample in samples]), size))
        np.save(unfinished / "figures.npy", np.stack([emphasis(sample["figures"], size) for sample in samples]))
    (unfinished / "captions.json").write_text(json.dumps([sample["caption"] for sample in samples]))
    os.rename(unfinished, folder / _name(number))


def shares(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks bool (N, H, W) -> how much of each cell of a coarser grid they fill, uint8 (N, *size), 0..255."""
    filled = F.interpolate(torch.from_numpy(masks).float()[:, None], size=size, mode="area")[:, 0]
    return (255 * filled).round().to(torch.uint8).numpy()


def emphasis(figures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What the cells of a picture weigh so that a hat is learned beside the elephant that wears it.

    A figure's cells weigh the root of how much smaller it is than the largest, at most `SMALLEST`; where several meet,
    the heaviest counts; cells of none weigh 0.

    Args:
        figures: bool (F, H, W), F at least 1.
        size: of the coarser grid (h, w).

    Returns:
        float16 (h, w).
    """
    areas = figures.sum(axis=(1, 2))
    weights = np.minimum((areas.max() / np.maximum(areas, 1)) ** 0.5, SMALLEST)
    return ((shares(figures, size) > 0) * weights[:, None, None]).max(axis=0).astype(np.float16)


@torch.no_grad()
def _encode(encoder, samples: list[dict]) -> np.ndarray:
    """Scaled latents float16; on a CPU channels-last and, where it has it, bf16 are four times as fast, and as exact as
    training was."""
    pixels = torch.from_numpy(np.stack([sample["image"] for sample in samples]))
    with torch.autocast("cpu", torch.bfloat16, enabled=quick_precision("cpu") == "bf16"):
        encoded = encoder.encode(to_signed(rearrange(pixels, "b h w c -> b c h w")))
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return (latents.float() * encoder.config.scaling_factor).to(torch.float16).numpy()


def _check_autoencoder(folder: Path, vae: Path) -> None:
    """Latents of two autoencoders must not mix: the cache remembers the weights' size and date."""
    weights = sorted(vae.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{vae} holds no autoencoder weights: train or export the autoencoder first.")
    identity = json.dumps([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights])
    note = folder / "autoencoder.json"
    if note.exists() and note.read_text() != identity:
        raise ValueError(f"{folder} was cached with another autoencoder: remove it or choose another cache folder.")
    note.write_text(identity)


def _name(number: int) -> str:
    return f"chunk-{number:05d}"


def _one_thread() -> None:
    torch.set_num_threads(1)

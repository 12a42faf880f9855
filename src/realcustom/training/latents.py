"""Latents computed once: chunks of arrays on disk, written by worker processes and read by memory mapping.

A cache is a folder of chunks `chunk-00000/`. Records are drawn first (`draw_records`), which needs no autoencoder, and
encoded then (`encode_records`). A chunk is complete or absent, and so are its latents:
    latents.npy     float16 (N, C, h, w), scaled to unit variance
    captions.json   N captions
    images.npy      uint8 (N, H, W, 3), the picture itself, also the reconstruction stage's reference
    references.npy  uint8 (N, H, W, 3), the subject in another picture (where references are cached)
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoModel
from einops import rearrange

from .autoencoder import latents_of, to_signed
from .precision import quick_precision

CHUNK = 2048
ENCODED_AT_ONCE = {"cpu": 32}  # pictures, by the device's type
ENCODED_ELSEWHERE = 512
SMALLEST = 4.0  # what a cell of a very small figure weighs


class Pairs(Protocol):
    """What a cache is made of; must be picklable."""

    def sample(self, index: int) -> dict:
        """image uint8 (H, W, 3), caption, and for references: reference uint8 (H, W, 3), mask bool (H, W) of its
        subject in the picture, figures bool (F, H, W), all that stands in the scene, difficulty."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """count: records in all, rounded up to whole chunks. references: store references too, and where figures stand.

    cells: side of the latents' grid.
    first: index of the first record, so that two caches of one source can differ.
    """

    count: int
    references: bool = False
    cells: int = 16
    first: int = 0
    workers: int = 1


def cache_latents(pairs: Pairs, vae: str | Path, folder: str | Path, settings: CacheSettings) -> Path:
    """Draw the chunks that are missing and compute the latents that are.

    Args:
        pairs: gives the record of an index.
        vae: folder of the autoencoder.
        folder: of the cache.
        settings: how much, and by how many processes.

    Returns:
        The cache's folder.

    Raises:
        ValueError: the cache was made with another autoencoder, or the autoencoder's grid is not `settings.cells` wide.
    """
    folder = Path(folder)
    _check_autoencoder(folder, Path(vae))
    draw_records(pairs, folder, settings)
    encode_records(vae, folder, settings)
    return folder


def draw_records(pairs: Pairs, folder: str | Path, settings: CacheSettings) -> None:
    """Draw the chunks that are missing, without latents; one that is there is finished, so others may read it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [number for number in range(-(-settings.count // CHUNK)) if not (folder / _name(number)).is_dir()]
    _spread(partial(_write_chunk, pairs, folder, settings), numbers, settings.workers)


def encode_records(vae: str | Path, folder: str | Path, settings: CacheSettings) -> None:
    """Compute the latents of the chunks that have none: on the accelerator where there is one, else by processes.

    Raises:
        ValueError: as `cache_latents`.
    """
    folder = Path(folder)
    _check_autoencoder(folder, Path(vae))
    chunks = [chunk for chunk in chunks_of(folder) if not (chunk / "latents.npy").is_file()]
    device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    _spread(
        partial(_encode_chunk, str(vae), settings.cells, device), chunks, settings.workers if device == "cpu" else 1
    )


def chunks_of(folder: str | Path) -> list[Path]:
    """The finished chunks of a cache, in order."""
    return sorted(Path(folder).glob("chunk-*"))


def _spread(work: Callable[[object], None], items: Sequence, workers: int) -> None:
    """Do the work on every item, in this process or in several, each on one thread."""
    if workers < 2:
        for item in items:
            work(item)
        return
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_one_thread) as pool:
        for _ in pool.imap_unordered(work, items):
            pass


class LatentCache:
    """A cache read by memory mapping: a `Source` for base (and, with references, adapter) training.

    Args:
        folder: of the cache.
        tokenize: list of captions -> int (N, T) token numbers; called once for all captions.
        count: records to use; None for all.
    """

    def __init__(self, folder: str | Path, tokenize: Callable[[list[str]], np.ndarray], count: int | None = None):
        chunks = chunks_of(folder)
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

    def arrays(self) -> dict[str, np.ndarray]:
        """All records as `resident` takes them: latents, tokens int32 (N, T) and, with references, figures."""
        rows = {"latents": self.latents.whole(self.size), "tokens": self.tokens[: self.size]}
        if self.figures.paths[0].exists():
            rows["figures"] = self.figures.whole(self.size)
        return rows

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

    def whole(self, count: int) -> np.ndarray:
        """The first rows (count, ...), copied."""
        chunks = range(-(-count // CHUNK))
        return np.concatenate([self._chunk(number)[: count - number * CHUNK] for number in chunks])

    def _chunk(self, number: int) -> np.ndarray:
        if number not in self._maps:
            self._maps[number] = np.load(self.paths[number], mmap_mode="r")
        return self._maps[number]

    def __getstate__(self) -> dict:
        return {"paths": self.paths, "_maps": {}}


def _write_chunk(pairs: Pairs, folder: Path, settings: CacheSettings, number: int) -> None:
    samples = [pairs.sample(settings.first + number * CHUNK + row) for row in range(CHUNK)]
    unfinished = folder / f".unfinished-{_name(number)}-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    np.save(unfinished / "images.npy", np.stack([sample["image"] for sample in samples]))
    np.save(unfinished / "difficulty.npy", np.array([sample.get("difficulty", 0.0) for sample in samples], np.float32))
    if settings.references:
        size = (settings.cells, settings.cells)
        np.save(unfinished / "references.npy", np.stack([sample["reference"] for sample in samples]))
        np.save(unfinished / "subjects.npy", shares(np.stack([sample["mask"] for sample in samples]), size))
        np.save(unfinished / "figures.npy", np.stack([emphasis(sample["figures"], size) for sample in samples]))
    (unfinished / "captions.json").write_text(json.dumps([sample["caption"] for sample in samples]))
    os.rename(unfinished, folder / _name(number))


def _encode_chunk(vae: str, cells: int, device: str, chunk: Path) -> None:
    encoder = AutoModel.from_pretrained(vae).eval().to(device, memory_format=torch.channels_last)
    images, step = np.load(chunk / "images.npy", mmap_mode="r"), ENCODED_AT_ONCE.get(device, ENCODED_ELSEWHERE)
    latents = np.concatenate([_encode(encoder, images[start : start + step]) for start in range(0, len(images), step)])
    if latents.shape[-2:] != (cells, cells):
        raise ValueError(f"The latents are {latents.shape[-2:]} cells, not {cells} x {cells}: set CacheSettings.cells.")
    unfinished = chunk / f".latents-{os.getpid()}.npy"
    np.save(unfinished, latents)
    os.rename(unfinished, chunk / "latents.npy")


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
def _encode(encoder, images: np.ndarray) -> np.ndarray:
    """Scaled latents float16 of uint8 (B, H, W, 3); channels-last and, where the device has it, bf16 are four times as
    fast on a CPU, and as exact as training was."""
    pixels = to_signed(torch.from_numpy(rearrange(images, "b h w c -> b c h w").copy()).to(encoder.device))
    kind = encoder.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=quick_precision(kind) == "bf16"):
        latents = latents_of(encoder, pixels)
    return (latents.float() * encoder.config.scaling_factor).to(torch.float16).cpu().numpy()


def _check_autoencoder(folder: Path, vae: Path) -> None:
    """Latents of two autoencoders must not mix: the cache remembers the weights' size and date."""
    folder.mkdir(parents=True, exist_ok=True)
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

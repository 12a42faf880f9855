"""Metrics as pure functions of features, masks and pictures, each value with a bootstrap interval. Needs numpy only.

Shapes: N generated images, R references, S subjects, d feature width, (H, W) picture height and width in pixels.
Features need not be normalised; similarities are cosines in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from realcustom.data.colour import rgb_to_lab


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over `count` values; low and high are nan for fewer than two groups."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]" if self.low == self.low else f"{self.mean:.3f}"

    def to_dict(self) -> dict:
        """JSON form; nan becomes None."""
        numbers = {"mean": self.mean, "low": self.low, "high": self.high}
        return {**{key: value if value == value else None for key, value in numbers.items()}, "count": self.count}


def bootstrap(
    values: Sequence[float], groups: Sequence | None = None, *, rounds: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of the values with a percentile bootstrap interval.

    Args:
        values: (N,) numbers; nan is left out.
        groups: (N,) labels of what was drawn independently, for instance the subject of each image: whole groups are
            drawn again, because several images of one subject are no independent samples. None: every value.
        rounds: number of resamples.
    """
    values = np.asarray(values, dtype=np.float64)
    kept = np.isfinite(values)
    labels = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    values, labels = values[kept], np.unique(labels[kept], return_inverse=True)[1]
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    sums, counts = np.bincount(labels, values), np.bincount(labels)
    if len(sums) < 2:
        return Estimate(float(values.mean()), float("nan"), float("nan"), len(values))
    drawn = np.random.default_rng(seed).integers(len(sums), size=(rounds, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def paired_difference(
    first: Sequence[float], second: Sequence[float], groups: Sequence | None = None, *, rounds: int = 2000
) -> Estimate:
    """Mean of first - second over the same tasks, with its interval: 0 outside it is a difference that counts."""
    return bootstrap(np.asarray(first, float) - np.asarray(second, float), groups, rounds=rounds)


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    features = np.asarray(features, dtype=np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def clip_t(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """CLIP-T: cosine of each image (N, d) with its own prompt (N, d); (N,)."""
    return (unit(images) * unit(texts)).sum(axis=-1)


def image_similarity(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """CLIP-I or DINO-I as DreamBooth defines them: mean cosine of each image (N, d) with all references (R, d)."""
    return (unit(images) @ unit(references).T).mean(axis=1)


def subject_similarities(images: np.ndarray, references: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Several subjects: similarity of each image with every subject, reduced over the subjects.

    Args:
        images: (N, d).
        references: per subject (R_i, d).

    Returns:
        "mean" (the convention of Subject-Diffusion and UNO), "max" (a picture that shows only one of them scores high
        all the same) and "min" (it does not), each (N,).
    """
    each = np.stack([image_similarity(images, rows) for rows in references], axis=1)
    return {"mean": each.mean(axis=1), "max": each.max(axis=1), "min": each.min(axis=1)}


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two bool masks of the same shape; 1 where both are empty."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 1.0


def top_share(scores: np.ndarray, share: float) -> np.ndarray:
    """Bool mask of the round(share * size) largest scores."""
    count = round(share * scores.size)
    mask = np.zeros(scores.size, dtype=bool)
    if count:
        mask[np.argsort(scores.ravel(), kind="stable")[-count:]] = True
    return mask.reshape(scores.shape)


def kid(first: np.ndarray, second: np.ndarray) -> float:
    """Kernel inception distance: unbiased squared MMD of two sets of features (N, d), (M, d) under (x.y / d + 1)^3.

    Features of other networks than Inception give other magnitudes: compare within one extractor only.

    Raises:
        ValueError: a set has fewer than two rows.
    """
    n, m = len(first), len(second)
    if min(n, m) < 2:
        raise ValueError(f"KID needs at least two images on each side, not {n} and {m}.")
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(first, first), kernel(second, second))]
    return float(sum(within) - 2 * kernel(first, second).mean())


def kid_estimate(first: np.ndarray, second: np.ndarray, *, rounds: int = 200, seed: int = 0) -> Estimate:
    """KID with an interval from halves drawn at random, whose spread is scaled to the full size."""
    value = kid(first, second)
    rng = np.random.default_rng(seed)
    half = (len(first) // 2, len(second) // 2)
    if min(half) < 2:
        return Estimate(value, float("nan"), float("nan"), len(first))
    draws = [
        kid(first[rng.choice(len(first), half[0], False)], second[rng.choice(len(second), half[1], False)])
        for _ in range(rounds)
    ]
    # Half of the data without replacement: the spread of a half equals that of the whole set's estimate.
    low, high = value + np.percentile(np.array(draws) - np.mean(draws), (2.5, 97.5))
    return Estimate(value, float(low), float(high), len(first))


def mean_lab(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean CIELAB colour (3,) of the pixels of uint8 (H, W, 3) inside a bool mask; nan for an empty one."""
    inside = picture[mask]
    return rgb_to_lab(inside).mean(axis=0) if len(inside) else np.full(3, np.nan)


def nearest(distances: np.ndarray) -> bool:
    """Whether entry 0, the own reference, is strictly the nearest; nan never is."""
    return bool(np.isfinite(distances).all() and (distances[0] < distances[1:]).all())


def top_one(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Retrieval: for each row of queries (N, d) whether the gallery's (N, d) row of the same index is the nearest."""
    return (unit(queries) @ unit(gallery).T).argmax(axis=1) == np.arange(len(queries))

"""sRGB to CIELAB and back, and a small deterministic k-means in CIELAB."""

import numpy as np

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) in 0..255 to CIELAB (D65), L in 0..100."""
    values = np.asarray(rgb, dtype=np.float64) / 255.0
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """CIELAB (..., 3) to sRGB in 0..255, float, clipped to the gamut per channel."""
    lab = np.asarray(lab, dtype=np.float64)
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f**3 > 216 / 24389, f**3, (116 * f - 16) * 27 / 24389) * _WHITE
    linear = np.clip(xyz @ np.linalg.inv(_TO_XYZ).T, 0.0, 1.0)
    values = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return values * 255.0


def cluster(lab: np.ndarray, count: int, rounds: int = 8) -> np.ndarray:
    """k-means centres (k, 3) of colours (n, 3); starts at farthest points, so the result needs no random numbers."""
    centres = [lab.mean(axis=0)]
    distance = ((lab - centres[0]) ** 2).sum(axis=1)
    centres = [lab[distance.argmin()]]
    distance = ((lab - centres[0]) ** 2).sum(axis=1)
    while len(centres) < count and distance.max() > 100.0:
        centres.append(lab[distance.argmax()])
        distance = np.minimum(distance, ((lab - centres[-1]) ** 2).sum(axis=1))
    centres = np.stack(centres)
    for _ in range(rounds):
        label = ((lab[:, None] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
        centres = np.stack(
            [lab[label == k].mean(axis=0) if (label == k).any() else centres[k] for k in range(len(centres))]
        )
    return centres

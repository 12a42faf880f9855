"""Flow time: 1 is noise, 0 is the image, x_t = (1 - t) x_image + t x_noise. Which times FLUX samples and trains at."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

TokenCount = Callable[[int, int], int]
"""(height, width) in pixels -> the number of tokens that decides the shift."""

BASE_TOKENS, BASE_SHIFT = 256, 0.5
MOST_TOKENS, MOST_SHIFT = 4096, 1.15


def image_tokens(height: int, width: int) -> int:
    """Tokens of an image, one for 16 x 16 pixels."""
    return math.ceil(height / 16) * math.ceil(width / 16)


def released_tokens(height: int, width: int) -> int:
    """What UNO's release counts instead, 1/64 of the tokens: its images were made, and its figures are, with this."""
    return (height // 8) * (width // 8) // 256


def shift_exponent(
    tokens: int,
    low: tuple[int, float] = (BASE_TOKENS, BASE_SHIFT),
    high: tuple[int, float] = (MOST_TOKENS, MOST_SHIFT),
) -> float:
    """mu of the shift: linear in the number of tokens, through (tokens, mu) `low` and `high`."""
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return low[1] + slope * (tokens - low[0])


def shifted(times: torch.Tensor, mu: float) -> torch.Tensor:
    """Times in [0, 1] moved towards noise: e^mu / (e^mu + 1 / t - 1), 0 stays 0."""
    return math.exp(mu) / (math.exp(mu) + (1 / times - 1))


def flow_times(steps: int, mu: float = 0.0) -> torch.Tensor:
    """(steps + 1,) float32 times from 1 to 0, evenly spaced and then shifted; mu = 0 shifts nothing."""
    return shifted(torch.linspace(1, 0, steps + 1), mu)


def interpolated(image: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """x_t of each of B samples: image and noise (B, ...), times (B,)."""
    times = times.view(-1, *[1] * (image.dim() - 1))
    return (1 - times) * image + times * noise

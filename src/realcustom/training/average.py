"""The exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class WeightAverage:
    """Holds one averaged tensor (fp32) per trained parameter.

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that the first steps do not average with noise.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float):
        self.decay = decay
        self.parameters = list(parameters)
        self.tensors = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after optimiser step `step` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.tensors, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The networks hold the averaged weights for a while, then their own again, bit for bit."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        try:
            _copy(self.parameters, self.tensors)
            yield
        finally:
            _copy(self.parameters, own)


@torch.no_grad()
def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)

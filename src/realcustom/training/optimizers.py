"""The optimisers a training can choose from: (parameters, settings) -> torch optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from .config import OptimizerSettings


def adamw(parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW with all settings, fused."""
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def muon(parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> OptimizerPair:
    """Muon (Jordan et al. 2024) for matrices, AdamW for all else.

    Muon moves all directions of a matrix alike, also those whose gradient is small. Its steps are scaled to the size of
    AdamW's (Liu et al. 2025, "Muon is scalable for LLM training"), so both share the learning rate; its momentum is the
    first of `betas`. A matrix that holds several maps side by side, such as fused queries, keys and values,
    counts as one.

    Raises:
        ValueError: there are no matrices, or nothing else.
    """
    matrices = [parameter for parameter in parameters if parameter.dim() == 2]
    others = [parameter for parameter in parameters if parameter.dim() != 2]
    if not matrices or not others:
        raise ValueError("Muon needs matrices, and others beside them: train these networks with AdamW (build=None).")
    first = torch.optim.Muon(
        matrices,
        lr=settings.learning_rate,
        momentum=settings.betas[0],
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return OptimizerPair(first, adamw(others, settings))


class OptimizerPair(torch.optim.Optimizer):
    """Two optimisers of different parameters as one: its groups are those of both, its state holds both states."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer):
        super().__init__([*first.param_groups, *second.param_groups], {})
        self.first, self.second = first, second

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Both steps, one after the other; closure is called once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Loading a state dict replaces groups and state, so they are handed over anew every time.
        border = len(self.first.param_groups)
        self.first.param_groups, self.second.param_groups = self.param_groups[:border], self.param_groups[border:]
        for optimizer in (self.first, self.second):
            optimizer.state = self.state
            optimizer.step()
        return loss

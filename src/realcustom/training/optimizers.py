"""The optimisers a training can choose from: (parameters by name, settings) -> torch optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from .config import OptimizerSettings


def adamw(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW with all settings, fused."""
    return torch.optim.AdamW(
        list(parameters.values()),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def muon(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> OptimizerPair:
    """Muon (Jordan et al. 2024) for matrices and convolution kernels, AdamW for all else, embeddings too.

    A matrix that holds several maps side by side, such as fused queries, keys and values, counts as one. A row of an
    embedding is moved by the samples that hold its token only, so its direction must not be spread over the others.
    Both share the learning rate; Muon's momentum is the first of `betas`.

    Raises:
        ValueError: there are no matrices or kernels, or nothing else.
    """
    directions = {name: tensor for name, tensor in parameters.items() if tensor.dim() > 1 and "embed" not in name}
    others = {name: tensor for name, tensor in parameters.items() if name not in directions}
    if not directions or not others:
        raise ValueError("Muon needs matrices, and others beside them: train these networks with AdamW (build=None).")
    first = Muon(
        directions.values(),
        learning_rate=settings.learning_rate,
        momentum=settings.betas[0],
        weight_decay=settings.weight_decay,
    )
    return OptimizerPair(first, adamw(others, settings))


class Muon(torch.optim.Optimizer):
    """Steps along the nearest orthogonal matrix of the momentum, so that all its directions move alike, also those
    whose gradient is small; scaled to the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training").

    What torch.optim.Muon does for matrices, and the same for convolution kernels (O, I, h, w), as matrices (O, I h w).
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, Jordan et al. 2024
    ITERATIONS = 5

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, momentum: float, weight_decay: float):
        defaults = {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: nn.Parameter, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
        update = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)
        direction = orthogonal(update, self.COEFFICIENTS, self.ITERATIONS).view(parameter.shape)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-0.2 * group["lr"] * max(update.shape) ** 0.5)


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], iterations: int, eps: float = 1e-7) -> Tensor:
    """A matrix (M, N) with its singular values brought near to 1, in bfloat16, by Newton-Schulz iteration."""
    linear, cubic, quintic = coefficients
    wide = matrix.bfloat16() if matrix.size(0) <= matrix.size(1) else matrix.bfloat16().T
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(iterations):
        gram = wide @ wide.T
        polynomial = torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic)
        wide = torch.addmm(wide, polynomial, wide, beta=linear)
    return wide if matrix.size(0) <= matrix.size(1) else wide.T


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

"""The loss as a module, so that DDP sees one forward pass, and sharding of what is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from .config import Batch, Parts


class Trainee(nn.Module):
    """Trained and frozen networks and the loss over them: forward is (batch, generator) -> (loss, metrics).

    Frozen networks are in evaluation mode and get no gradients; the loss decides what flows through them.
    """

    def __init__(self, parts: Parts):
        super().__init__()
        self.trained = nn.ModuleDict(parts.trained)
        self.frozen = nn.ModuleDict(parts.frozen).requires_grad_(False)
        self.loss = parts.loss

    def train(self, mode: bool = True) -> Trainee:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Scalar loss and scalar metrics of a batch."""
        return self.loss({**self.frozen, **self.trained}, batch, generator)


def enable_checkpointing(modules: Iterable[nn.Module]) -> None:
    """Recompute activations in the backward pass where a network knows how."""
    for module in modules:
        enable = getattr(module, "enable_gradient_checkpointing", None) or getattr(
            module, "gradient_checkpointing_enable", None
        )
        if enable is not None and getattr(module, "_supports_gradient_checkpointing", True):
            enable()


def shard_modules(modules: Mapping[str, nn.Module], accelerator) -> None:
    """FSDP: split every trained network's parameters over all processes.

    `fully_shard` is called directly because accelerate's plugin, given in code, falls back to copies on a CPU.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in modules.values():
        fully_shard(module, mesh=mesh)

"""The loss as a module, so that DDP sees one forward pass, and sharding of what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor

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


def enable_checkpointing(parts: Parts) -> None:
    """Recompute activations in the backward pass of every network through which gradients flow and that knows how."""
    for module in [*parts.trained.values(), *parts.frozen.values()]:
        if getattr(module, "_supports_gradient_checkpointing", False) and hasattr(
            module, "enable_gradient_checkpointing"
        ):
            module.enable_gradient_checkpointing()


def compile_networks(parts: Parts, names: Sequence[str]) -> None:
    """`torch.compile` in place, for one shape: a training sees no other; weights keep their names.

    Raises:
        ValueError: there is no network of a name.
    """
    networks = {**parts.frozen, **parts.trained}
    for name in names:
        if name not in networks:
            raise ValueError(f'There is no network "{name}" to compile; this training has {", ".join(networks)}.')
        networks[name].compile(dynamic=False)


def shard(trainee: Trainee, accelerator) -> None:
    """FSDP: split the trained parameters, their gradients, averages and optimiser state over all processes.

    `fully_shard` is called directly because accelerate's plugin, given in code, falls back to copies on a CPU. The loss
    calls methods of the networks beside `forward`, so the trainee is gathered as one.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    fully_shard(trainee, mesh=mesh, ignored_params=set(trainee.frozen.parameters()))


@contextmanager
def whole_weights(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Sharded networks hold their whole weights for a while, so that one process can use and save them."""
    places = [
        (module, name, parameter)
        for network in modules.values()
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    try:
        for module, name, parameter in places:
            module._parameters[name] = nn.Parameter(parameter.detach().full_tensor(), requires_grad=False)
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter

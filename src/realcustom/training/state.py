"""Tensors of networks and optimisers by name, whole also where they are sharded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def gather_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors; every process must call this with the same names."""
    return {name: whole(tensor) for name, tensor in tensors.items()}


def whole(tensor: Tensor) -> Tensor:
    """The tensor, or the full tensor of a shard."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign_tensors(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], what: str) -> None:
    """Copy whole tensors into targets of the same names, keeping the targets' memory layout and sharding.

    Raises:
        ValueError: names or shapes differ; `what` names the source.
    """
    differing = sorted(set(targets) ^ set(sources))
    differing += [name for name in targets if name in sources and targets[name].shape != sources[name].shape]
    if differing:
        raise ValueError(f"{what} does not fit: {len(differing)} tensors differ, among them {differing[0]}.")
    for name, target in targets.items():
        target.copy_(_placed(sources[name], target))


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimiser as whole tensors "parameter:slot", and its scalars as JSON values."""
    tensors, scalars = {}, {}
    for name, parameter in parameters.items():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.dim():
                tensors[f"{name}:{slot}"] = whole(value)
            else:
                scalars[f"{name}:{slot}"] = float(value)
    return tensors, scalars


@torch.no_grad()
def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, float],
) -> None:
    """Put saved state back, in the parameters' memory layout (a fused step in another layout rounds differently)."""
    for key, value in tensors.items():
        name, slot = key.rsplit(":", 1)
        parameter = parameters[name]
        state = torch.empty_like(parameter, dtype=value.dtype)
        state.copy_(_placed(value, state))
        optimizer.state[parameter][slot] = state
    for key, value in scalars.items():
        name, slot = key.rsplit(":", 1)
        parameter = parameters[name]
        optimizer.state[parameter][slot] = torch.tensor(value, dtype=torch.float32, device=parameter.device)


def _placed(source: Tensor, target: Tensor) -> Tensor:
    source = source.to(target.device)
    if isinstance(target, DTensor):
        return distribute_tensor(source, target.device_mesh, target.placements)
    return source

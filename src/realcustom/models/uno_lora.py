"""UNO's low-rank weights in the release's names: query, key and value of a stream share one down matrix.

PEFT, which diffusers loads LoRAs with, gives each of the three a down matrix of its own. Loaded they hold the same
numbers; trained apart they would leave the release's layout. `share_downs` makes them one parameter again.

Shapes: c features in, C out, r the rank. down is (r, c), up (C, r); a fused up has the rows of q, k and v in turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

PAIR = ("down.weight", "up.weight")
QKV = ("to_q", "to_k", "to_v")
ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")


def lora_places(double_blocks: int, single_blocks: int) -> dict[str, tuple[str, ...]]:
    """The release's name of each pair -> the modules of diffusers' FluxTransformer2DModel that it belongs to."""
    places: dict[str, tuple[str, ...]] = {}
    for index in range(double_blocks):
        name, attention = f"double_blocks.{index}.processor", f"transformer_blocks.{index}.attn"
        places[f"{name}.qkv_lora1"] = tuple(f"{attention}.{part}" for part in QKV)
        places[f"{name}.proj_lora1"] = (f"{attention}.to_out.0",)
        places[f"{name}.qkv_lora2"] = tuple(f"{attention}.{part}" for part in ADDED_QKV)
        places[f"{name}.proj_lora2"] = (f"{attention}.to_add_out",)
    for index in range(single_blocks):
        name, block = f"single_blocks.{index}.processor", f"single_transformer_blocks.{index}"
        places[f"{name}.qkv_lora"] = tuple(f"{block}.attn.{part}" for part in QKV)
        places[f"{name}.proj_lora"] = (f"{block}.proj_out",)
    return places


def places_of(transformer) -> dict[str, tuple[str, ...]]:
    """`lora_places` of a FluxTransformer2DModel."""
    return lora_places(transformer.config.num_layers, transformer.config.num_single_layers)


def released_shapes(transformer, rank: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of a release file for this transformer at a rank."""
    shapes = {}
    for name, modules in places_of(transformer).items():
        linears = [_linear(transformer, module) for module in modules]
        shapes[f"{name}.down.weight"] = (rank, linears[0].in_features)
        shapes[f"{name}.up.weight"] = (sum(linear.out_features for linear in linears), rank)
    return shapes


def add_lora(transformer, rank: int, adapter: str = "uno", generator: torch.Generator | None = None) -> None:
    """A fresh LoRA on the transformer, with shared downs: down N(0, 1 / rank^2), up zero, scale 1."""
    from peft import LoraConfig

    targets = [module for modules in places_of(transformer).values() for module in modules]
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), adapter)
    share_downs(transformer, adapter, check=False)
    for modules in places_of(transformer).values():
        downs, ups = _weights(transformer, modules, adapter)
        nn.init.normal_(downs[0], std=1 / rank, generator=generator)
        for up in ups:
            nn.init.zeros_(up)


def share_downs(transformer, adapter: str = "uno", check: bool = True) -> None:
    """One parameter for the down matrices of q, k and v of a stream; its gradient is then the sum of theirs.

    Args:
        check: whether they must hold the same numbers.

    Raises:
        ValueError: they do not.
    """
    for name, modules in places_of(transformer).items():
        downs, _ = _weights(transformer, modules, adapter)
        if check and any(not torch.equal(down, downs[0]) for down in downs[1:]):
            raise ValueError(f"The down matrices of {name} differ: they cannot be shared.")
        for module in modules[1:]:
            transformer.get_submodule(module).lora_A[adapter].weight = downs[0]


def released_state(transformer, adapter: str = "uno") -> dict[str, Tensor]:
    """The LoRA in the release's names, with the same effect at strength 1.

    Where q, k and v have one down matrix (or equal ones) the rank stays. Where any differ, all pairs are written at
    three times the rank: downs one below the other, ups block by block, the others padded with zeros, since a release
    file has one rank. The scale of the adapter is multiplied into the up matrices.
    """
    pairs = {name: _weights(transformer, modules, adapter) for name, modules in places_of(transformer).items()}
    shared = all(torch.equal(down, downs[0]) for downs, _ in pairs.values() for down in downs[1:])
    state = {}
    for name, (downs, ups) in pairs.items():
        module = transformer.get_submodule(places_of(transformer)[name][0])
        scale = module.lora_alpha[adapter] / module.r[adapter]
        down, up = (downs[0], torch.cat(list(ups))) if shared else _stacked(downs, ups)
        state[f"{name}.down.weight"] = down.detach().clone().contiguous()
        state[f"{name}.up.weight"] = (up.detach() * scale).contiguous()
    return state


def _stacked(downs: Sequence[Tensor], ups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One pair at three times the rank."""
    rank = downs[0].shape[0]
    if len(downs) == 1:
        padding = (0, 0, 0, 2 * rank), (0, 2 * rank)
        return nn.functional.pad(downs[0], padding[0]), nn.functional.pad(ups[0], padding[1])
    return torch.cat(list(downs)), torch.block_diag(*ups)


def _weights(transformer, modules: Sequence[str], adapter: str) -> tuple[list[Tensor], list[Tensor]]:
    layers = [transformer.get_submodule(module) for module in modules]
    return [layer.lora_A[adapter].weight for layer in layers], [layer.lora_B[adapter].weight for layer in layers]


def _linear(transformer, name: str) -> nn.Linear:
    module = transformer.get_submodule(name)
    return getattr(module, "base_layer", module)

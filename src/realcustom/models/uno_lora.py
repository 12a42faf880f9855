"""UNO's low-rank weights in the release's names: query, key and value of a stream share one down matrix.

PEFT, which diffusers loads LoRAs with, gives each of the three a down matrix of its own. Loaded they hold the same
numbers; trained apart they would leave the release's layout. `SharedLora` is what is trained here.

Shapes: c features in, C out, r the rank. down is (r, c), up (C, r); a fused up has the rows of q, k and v in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

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


class SharedLora(nn.Module):
    """UNO's LoRA as it is trained: one down matrix for q, k and v; down N(0, 1 / rank^2), up zero, scale 1.

    Its state dict is the release's file, but for "/" in the place of "." within a pair's name.

    Args:
        transformer: FluxTransformer2DModel, which gives the layers and their widths; may lie on the meta device.
        rank: r.
        generator: of the fresh weights.
    """

    def __init__(self, transformer, rank: int, generator: torch.Generator | None = None):
        super().__init__()
        self.places = places_of(transformer)
        self.pairs = nn.ModuleDict()
        shapes = released_shapes(transformer, rank)
        for name in self.places:
            pair = nn.ModuleDict()
            for part, kind in (("down", "down.weight"), ("up", "up.weight")):
                rows, columns = shapes[f"{name}.{kind}"]
                pair[part] = nn.Linear(columns, rows, bias=False)
            nn.init.normal_(pair["down"].weight, std=1 / rank, generator=generator)
            nn.init.zeros_(pair["up"].weight)
            self.pairs[name.replace(".", "/")] = pair

    def released_state(self) -> dict[str, Tensor]:
        """The release's names -> weights."""
        return {name.removeprefix("pairs.").replace("/", "."): tensor for name, tensor in self.state_dict().items()}

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a release file of the same rank, strictly."""
        own = {name.removeprefix("pairs.").replace("/", "."): name for name in self.state_dict()}
        self.load_state_dict({own.get(name, name): tensor for name, tensor in state.items()}, strict=True)

    @contextmanager
    def attached(self, transformer) -> Iterator[None]:
        """Acts on the transformer's layers for a while, unmerged."""
        handles = []
        for name, modules in self.places.items():
            pair, start = self.pairs[name.replace(".", "/")], 0
            for module in modules:
                linear = transformer.get_submodule(module)
                rows = slice(start, start + linear.out_features)
                handles.append(linear.register_forward_hook(partial(_add_pair, pair=pair, rows=rows)))
                start = rows.stop
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _add_pair(_module, inputs, output: Tensor, *, pair: nn.ModuleDict, rows: slice) -> Tensor:
    """A linear layer's output with its rows of the pair added; the pair computes in its own dtype."""
    down, up = pair["down"].weight, pair["up"].weight[rows]
    hidden = nn.functional.linear(inputs[0].to(down.dtype), down)
    return output + nn.functional.linear(hidden, up).to(output.dtype)


def released_state(transformer, adapter: str = "uno") -> dict[str, Tensor]:
    """A LoRA that PEFT holds, such as one trained in diffusers, in the release's names, with the same effect.

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

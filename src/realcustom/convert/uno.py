"""FLUX checkpoints in Black Forest Labs' names, and UNO's LoRA files, for diffusers' FluxTransformer2DModel.

diffusers converts FLUX files of the official width itself; this does it for any width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin
from safetensors import safe_open
from torch import Tensor

from realcustom.convert.states import check_keys, read_state
from realcustom.models.uno_lora import released_shapes

_EMBEDDERS = {"time_in": "timestep_embedder", "guidance_in": "guidance_embedder", "vector_in": "text_embedder"}
# Name in the file -> the names its rows are cut into, one after the other; "{n}" is the block.
_DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_attn.norm.query_norm.scale": ("attn.norm_q.weight",),
    "img_attn.norm.key_norm.scale": ("attn.norm_k.weight",),
    "txt_attn.norm.query_norm.scale": ("attn.norm_added_q.weight",),
    "txt_attn.norm.key_norm.scale": ("attn.norm_added_k.weight",),
}
_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm.scale": ("attn.norm_q.weight",),
    "norm.key_norm.scale": ("attn.norm_k.weight",),
}
_OUTSIDE = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")


def flux_from_released(state: Mapping[str, Tensor], transformer: FluxTransformer2DModel) -> dict[str, Tensor]:
    """A FLUX state dict in Black Forest Labs' names to that of diffusers' transformer.

    Args:
        state: of any width and depth.
        transformer: gives the widths; may lie on the meta device.

    Raises:
        ValueError: keys are unknown, missing or misshapen; all are listed.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        converted |= _renamed(name, tensor, expected)
    check_keys({name: tuple(tensor.shape) for name, tensor in converted.items()}, expected)
    return converted


def _renamed(name: str, tensor: Tensor, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """One tensor under its new name or names; unknown names stay, and are refused later."""
    stem, _, kind = name.rpartition(".")
    if match := _BLOCK.fullmatch(name):
        stage, index, inner = match.groups()
        block = f"{'single_' if stage == 'single' else ''}transformer_blocks.{index}"
        table = _SINGLE if stage == "single" else _DOUBLE
        if inner in table:
            return {f"{block}.{table[inner][0]}": tensor}
        names = [f"{block}.{part}.{kind}" for part in table.get(inner.rpartition(".")[0], ())]
        rows = [expected[part][0] for part in names if part in expected]
        if not names or len(rows) != len(names) or sum(rows) != tensor.shape[0]:
            return {name: tensor}
        return dict(zip(names, tensor.split(rows), strict=True))
    if stem in _OUTSIDE:
        return {f"{_OUTSIDE[stem]}.{kind}": tensor}
    if stem == "final_layer.adaLN_modulation.1":
        shift, scale = tensor.chunk(2)
        return {f"norm_out.linear.{kind}": torch.cat([scale, shift])}
    part, _, layer = stem.partition(".")
    if part in _EMBEDDERS and layer in ("in_layer", "out_layer"):
        number = 1 if layer == "in_layer" else 2
        return {f"time_text_embed.{_EMBEDDERS[part]}.linear_{number}.{kind}": tensor}
    return {name: tensor}


def load_flux(file: Path | str, config: Mapping[str, Any], dtype: torch.dtype | None = None) -> FluxTransformer2DModel:
    """A transformer from a FLUX checkpoint file in Black Forest Labs' names.

    Args:
        config: of diffusers' FluxTransformer2DModel.
        dtype: of the weights; None leaves the file's.

    Raises:
        ValueError: the file is unreadable, or its keys do not fit the configuration.
    """
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(config)
    transformer.load_state_dict(flux_from_released(read_state(file), transformer), strict=True, assign=True)
    return transformer if dtype is None else transformer.to(dtype)


def checked_lora(source: Path | str | Mapping[str, Tensor], transformer: FluxTransformer2DModel) -> dict[str, Tensor]:
    """A UNO LoRA in the release's names, held against the transformer.

    Args:
        source: a safetensors file such as `dit_lora.safetensors`, or its state dict; any rank.

    Raises:
        ValueError: the file is unreadable, or keys are unknown, missing or misshapen; all are listed.
    """
    state = dict(source) if isinstance(source, Mapping) else read_state(source)
    downs = [tensor for name, tensor in state.items() if name.endswith(".down.weight") and tensor.dim() == 2]
    if not downs:
        raise ValueError("This is no UNO LoRA: it has no down matrices in the release's names.")
    check_keys({name: tuple(t.shape) for name, t in state.items()}, released_shapes(transformer, downs[0].shape[0]))
    return state


def is_uno_lora(file: Path | str) -> bool:
    """Whether a safetensors file has names as UNO's release; nothing but its names is read."""
    with safe_open(file, "pt") as tensors:
        return any(".processor." in name for name in tensors.keys())  # noqa: SIM118 - no mapping


def load_lora(transformer: FluxTransformer2DModel, source: Path | str | Mapping[str, Tensor], adapter: str = "uno"):
    """Put a UNO LoRA on a transformer through diffusers' own loader, unmerged, at strength 1.

    Raises:
        ValueError: as `checked_lora`.
    """
    state = FluxLoraLoaderMixin.lora_state_dict(checked_lora(source, transformer))
    transformer.load_lora_adapter(state, adapter_name=adapter, prefix="transformer")

"""Vision transformers in timm's state-dict layout to transformers' layout.

The authors' code takes its backbones from timm (`vit_so400m_patch14_siglip_384` and
`vit_large_patch14_reg4_dinov2.lvd142m`); these functions carry such weights over without timm itself. A timm state
dict does not say its number of heads, so the caller does.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from realcustom.encoders.backbones import resample_positions

SIGLIP_NAMES = {
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
DINO_NAMES = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
# timm's attention pooling and classifier make one vector of a whole image; the features are taken before them.
UNUSED = ("attn_pool.", "head.", "fc_norm.")


def vision_trunk(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The timm ViT inside an open_clip checkpoint (the form SigLIP's file has), or the state dict itself."""
    prefix = "visual.trunk."
    trunk = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return trunk or dict(state)


def siglip_from_timm(state: Mapping[str, Tensor], image_size: int = 384) -> dict[str, Tensor]:
    """State dict of timm's SigLIP ViT -> that of transformers' SiglipVisionModel without pooling head."""
    converted, rest = _convert_common(state, SIGLIP_NAMES, "encoder.layers", "self_attn")
    positions = _take(rest, "pos_embed", "SigLIP")
    _refuse(rest, "SigLIP")
    positions = resample_positions(positions, image_size // _patch_size(state, "SigLIP"))
    return converted | {"embeddings.position_embedding.weight": positions[0]}


def dino_from_timm(state: Mapping[str, Tensor], image_size: int = 384) -> dict[str, Tensor]:
    """State dict of timm's DINOv2 ViT with registers -> that of transformers' Dinov2WithRegistersModel.

    timm adds positions to the patches only (the class token's is part of the token there); transformers adds one to
    the class token too, which becomes zero. Files in DINOv2's own layout, which keep the class token's position as
    the table's first row and call the registers `register_tokens`, are taken as well. The mask token, used in
    pre-training only, becomes zero.
    """
    converted, rest = _convert_common(state, DINO_NAMES, "encoder.layer", "attention")
    class_token = _take(rest, "cls_token", "DINOv2")
    positions = _take(rest, "pos_embed", "DINOv2")
    if "register_tokens" in rest:
        registers = rest.pop("register_tokens")
    else:
        registers = _take(rest, "reg_token", "DINOv2")
        positions = torch.cat([torch.zeros_like(class_token), positions], dim=1)
    for name in [name for name in rest if re.fullmatch(r"blocks\.\d+\.ls[12]\.gamma", name)]:
        _, index, scale, _ = name.split(".")
        converted[f"encoder.layer.{index}.layer_scale{scale[-1]}.lambda1"] = rest.pop(name)
    rest.pop("mask_token", None)
    _refuse(rest, "DINOv2")
    grid = image_size // _patch_size(state, "DINOv2")
    return converted | {
        "embeddings.cls_token": class_token,
        "embeddings.register_tokens": registers,
        "embeddings.mask_token": torch.zeros_like(class_token[0]),
        "embeddings.position_embeddings": resample_positions(positions, grid, prefix=1),
    }


def siglip_config_from_timm(state: Mapping[str, Tensor], heads: int = 16) -> dict[str, Any]:
    """Arguments of SiglipVisionConfig for timm's SigLIP ViT; the activation there is the exact GELU."""
    return _common_config(state, heads, "SigLIP") | {
        "intermediate_size": _shape(state, "blocks.0.mlp.fc1.weight", "SigLIP")[0],
    }


def dino_config_from_timm(state: Mapping[str, Tensor], heads: int = 16) -> dict[str, Any]:
    """Arguments of Dinov2WithRegistersConfig for timm's DINOv2 ViT with registers."""
    width = _shape(state, "patch_embed.proj.weight", "DINOv2")[0]
    hidden = _shape(state, "blocks.0.mlp.fc1.weight", "DINOv2")[0]
    registers = "register_tokens" if "register_tokens" in state else "reg_token"
    if hidden % width:
        raise ValueError(f"The DINOv2 weights have an MLP of {hidden}, which is no multiple of their width {width}.")
    return _common_config(state, heads, "DINOv2") | {
        "mlp_ratio": hidden // width,
        "num_register_tokens": _shape(state, registers, "DINOv2")[1],
    }


def _common_config(state: Mapping[str, Tensor], heads: int, model: str) -> dict[str, Any]:
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    width = _shape(state, "patch_embed.proj.weight", model)[0]
    if blocks != set(range(len(blocks))):
        raise ValueError(f"The {model} weights lack some of their blocks: only {sorted(blocks)} are there.")
    if width % heads:
        raise ValueError(f"The {model} weights have width {width}, which {heads} heads do not divide.")
    return {
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": heads,
        "patch_size": _patch_size(state, model),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }


def _convert_common(
    state: Mapping[str, Tensor], names: Mapping[str, str], blocks: str, attention: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What both backbones share -> (converted, not converted); the joint q, k, v matrix is split in its three."""
    converted, rest = {}, {}
    for name, tensor in state.items():
        if name.startswith(UNUSED):
            continue
        block, local = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)", name).groups()
        prefix = f"{blocks}.{block}." if block else ""
        stem, _, kind = local.rpartition(".")
        if block and stem == "attn.qkv":
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"{prefix}{attention}.{letter}_proj.{kind}"] = part.contiguous()
        elif stem in names and (block is None) == (stem in ("patch_embed.proj", "norm")):
            converted[f"{prefix}{names[stem]}.{kind}"] = tensor
        else:
            rest[name] = tensor
    return converted, rest


def _take(rest: dict[str, Tensor], name: str, model: str) -> Tensor:
    if name not in rest:
        raise ValueError(f"These are no {model} weights in timm's layout: {name} is missing.")
    return rest.pop(name)


def _refuse(rest: Mapping[str, Tensor], model: str) -> None:
    if rest:
        raise ValueError(f"The {model} weights have unknown entries: {', '.join(sorted(rest))}.")


def _shape(state: Mapping[str, Tensor], name: str, model: str) -> torch.Size:
    if name not in state:
        raise ValueError(f"These are no {model} weights in timm's layout: {name} is missing.")
    return state[name].shape


def _patch_size(state: Mapping[str, Tensor], model: str) -> int:
    return _shape(state, "patch_embed.proj.weight", model)[-1]

"""IP-Adapter's files (h94/IP-Adapter) -> our adapter and reference encoder, to act under RealCustom's mask.

These are not the papers' weights: IP-Adapter was trained to let a picture act on the whole image, with CLIP features
that say less than SigLIP's and DINOv2's. Its attention beside the text's is RealCustom's Eq. 4, so that the mask,
several subjects, regions and strengths work on top.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from realcustom.convert.release import PIXELS_A_LATENT, SDXL_UNET, stock_config
from realcustom.convert.states import listed, save_model, without_harmless
from realcustom.encoders.clip_image import ClipImageEncoder
from realcustom.hub.settings import AdapterSettings, CallDefaults
from realcustom.models.adapter import RealCustomAdapter
from realcustom.models.unet import cross_attention_names

SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
"""Configuration of the SD v1.5 base U-Net."""

CLIP_VIT_H: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 1024,
    "hidden_act": "gelu",
}
"""The image encoder of all files but `ip-adapter_sdxl`, whose CLIP bigG brings its own configuration."""

BASES = {16: "stable-diffusion-v1-5/stable-diffusion-v1-5", 70: "stabilityai/stable-diffusion-xl-base-1.0"}
UNETS = {16: SD15_UNET, 70: SDXL_UNET}
CLIP_ARGUMENTS = (*CLIP_VIT_H, "layer_norm_eps")
PROJECTION, ATTENTION = "image_proj.", "ip_adapter."
DIM_HEAD = 64  # of the resampler; its weights do not tell
RESAMPLER_BLOCK = {
    "0.norm1": "ln0", "0.norm2": "ln1", "0.to_q": "attn.to_q", "0.to_out": "attn.to_out.0",
    "1.0": "ff.0", "1.1": "ff.1.net.0.proj", "1.3": "ff.1.net.2",
}  # fmt: skip


def is_ip_adapter(keys: Iterable[str]) -> bool:
    """Whether a state dict with these keys is one of IP-Adapter's."""
    return any(re.fullmatch(r"ip_adapter\.\d+\.to_k_ip\.weight", key) for key in keys)


def projector_from_ip_adapter(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration for `build_projector` and its state dict, from the keys after `image_proj.`.

    Raises:
        ValueError: it is neither the linear projection nor the resampler (the face variants are others).
    """
    if "latents" in state:
        _, tokens, hidden = state["latents"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
        config = {
            "kind": "resampler",
            "vision_dim": state["proj_in.weight"].shape[1],
            "out_dim": state["proj_out.weight"].shape[0],
            "hidden_dim": hidden,
            "heads": state["layers.0.0.to_q.weight"].shape[0] // DIM_HEAD,
            "depth": depth,
            "tokens": tokens,
            "mlp_ratio": state["layers.0.1.1.weight"].shape[0] / hidden,
        }
        converted: dict[str, Tensor] = {}
        for name, tensor in state.items():
            converted |= _resampler_entry(name, tensor)
        return config, converted
    if set(state) == {"proj.weight", "proj.bias", "norm.weight", "norm.bias"}:
        out_dim = state["norm.weight"].shape[0]
        config = {
            "kind": "image-embed",
            "vision_dim": state["proj.weight"].shape[1],
            "out_dim": out_dim,
            "tokens": state["proj.weight"].shape[0] // out_dim,
        }
        return config, {f"network.{name.replace('proj', 'image_embeds')}": t for name, t in state.items()}
    raise ValueError(
        "This is an IP-Adapter of another kind (for faces, or for all CLIP tokens): the plain and the Plus files "
        "(ip-adapter_sd15, ip-adapter-plus_sd15, ip-adapter_sdxl_vit-h, ip-adapter-plus_sdxl_vit-h) can be converted."
    )


def _resampler_entry(name: str, tensor: Tensor) -> dict[str, Tensor]:
    match = re.fullmatch(r"layers\.(\d+)\.(\d\.\w+)\.(weight|bias)", name)
    if match is None:
        return {f"network.{name}": tensor}
    block, part, kind = match.groups()
    if part == "0.to_kv":
        key, value = tensor.chunk(2)
        return {f"network.layers.{block}.attn.to_{letter}.{kind}": t for letter, t in (("k", key), ("v", value))}
    return {f"network.layers.{block}.{RESAMPLER_BLOCK.get(part, part)}.{kind}": tensor}


def keys_values_from_ip_adapter(state: Mapping[str, Tensor], unet) -> dict[str, Tensor]:
    """`to_k.N.weight` and `to_v.N.weight` of our adapter, from the keys after `ip_adapter.`.

    IP-Adapter numbers the attention layers of a U-Net as diffusers lists their processors: down, up, then mid; we
    number the cross-attention layers as they run: down, mid, up.

    Raises:
        ValueError: keys are missing or unknown.
    """
    numbers = {key.removesuffix(".processor"): number for number, key in enumerate(unet.attn_processors)}
    names = {
        f"{numbers[name]}.to_{letter}_ip.weight": f"to_{letter}.{index}.weight"
        for index, name in enumerate(cross_attention_names(unet))
        for letter in "kv"
    }
    missing, unknown = sorted(names.keys() - state.keys()), sorted(state.keys() - names.keys())
    if missing or unknown:
        kind = "lack" if missing else "have unknown"
        raise ValueError(
            f"The IP-Adapter weights do not fit the U-Net: they {kind} {listed(missing or unknown)}; name the base "
            "model's U-Net configuration if it is neither SD v1.5 nor SDXL."
        )
    return {names[name]: tensor for name, tensor in state.items()}


def write_ip_adapter(
    state: Mapping[str, Tensor],
    clip: Mapping[str, Tensor] | None,
    out: Path,
    *,
    unet_config: Mapping[str, Any] | Path | str | None = None,
    clip_config: Path | None = None,
    base: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[AdapterSettings, list[str]]:
    """Write `out/adapter/` and, with the image encoder's weights, `out/reference_encoder/`.

    Args:
        state: of IP-Adapter, its two dictionaries under `image_proj.` and `ip_adapter.`.
        clip: of transformers' CLIP vision model with projection.
        unet_config: of the base; default SD v1.5's or SDXL's, by the number of layers.
        clip_config: JSON file beside the image encoder; CLIP ViT-H where there is none.
        base: recorded in the settings; default the one of the family.
        dtype: of the weights written; None as they are.

    Returns:
        the settings that belong to the weights, and what the user should know.

    Raises:
        ValueError: keys or shapes do not fit.
    """
    state, left = without_harmless(state)
    strange = [name for name in state if not name.startswith((PROJECTION, ATTENTION))]
    if strange:
        raise ValueError(f"The IP-Adapter weights have unknown entries: {listed(sorted(strange))}.")
    attention = {name.removeprefix(ATTENTION): t for name, t in state.items() if name.startswith(ATTENTION)}
    count = sum(name.endswith(".to_k_ip.weight") for name in attention)
    unet_config = UNETS.get(count) if unet_config is None else stock_config(unet_config)
    if unet_config is None:
        raise ValueError(f"No base model is known with {count} cross-attention layers: name its U-Net configuration.")
    projection = {name.removeprefix(PROJECTION): t for name, t in state.items() if name.startswith(PROJECTION)}
    config, converted = projector_from_ip_adapter(projection)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
        widths = [unet.get_submodule(name).to_q.out_features for name in cross_attention_names(unet)]
        adapter = RealCustomAdapter(widths, config["out_dim"], config)
    weights = {f"projector.{name}": tensor for name, tensor in converted.items()}
    save_model(adapter, weights | keys_values_from_ip_adapter(attention, unet), out / "adapter", dtype)
    notes = [f"left out, since no network reads it: {', '.join(left)}."] if left else []
    if clip is None:
        notes.append("no CLIP image encoder is among the files: a reference encoder must be given to use it.")
    else:
        write_clip(clip, out, clip_config, patches=config["kind"] == "resampler", dtype=dtype)
    return ip_adapter_settings(base or BASES.get(count), unet_config), notes


def write_clip(
    state: Mapping[str, Tensor],
    out: Path,
    config: Path | None = None,
    patches: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Write CLIP's vision model with projection to `out/reference_encoder/`; ValueError where it does not fit."""
    arguments = dict(CLIP_VIT_H)
    if config is not None and config.is_file():
        record = json.loads(config.read_text())
        arguments |= {name: record[name] for name in CLIP_ARGUMENTS if name in record}
    with torch.device("meta"):
        encoder = ClipImageEncoder(arguments, patches)
    state = {f"clip.{name}": tensor for name, tensor in without_harmless(state)[0].items()}
    save_model(encoder, state, out / "reference_encoder", dtype)


def ip_adapter_settings(base: str | None, unet_config: Mapping[str, Any]) -> AdapterSettings:
    """Ours, since IP-Adapter knows no mask: a soft mask of 0.25, stock conditioning, guidance 7.5."""
    side = unet_config["sample_size"] * PIXELS_A_LATENT
    return AdapterSettings(
        base=base,
        origin="IP-Adapter under RealCustom's mask; not the papers' weights",
        defaults=CallDefaults(steps=30, height=side, width=side, guidance_scale=7.5),
    )

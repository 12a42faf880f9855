"""Loading SigLIP, DINOv2 and CLIP vision models in transformers' format, checked and resampled to a view size."""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionModel, Dinov2WithRegistersModel, PreTrainedModel, SiglipVisionModel

COMMON_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "hidden_act", "layer_norm_eps")
SIGLIP_KEYS = (*COMMON_KEYS, "intermediate_size")
DINO_KEYS = (*COMMON_KEYS, "mlp_ratio", "qkv_bias", "use_swiglu_ffn", "num_register_tokens")


def load_backbones(
    siglip: str, dino: str, image_size: int, loading: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Any]]]:
    """State dicts (position tables resampled for `image_size`) and configurations, each under "siglip" and "dino"."""
    siglip_model = load_complete(SiglipVisionModel, siglip, {**loading, "vision_use_head": False})
    dino_model = load_complete(Dinov2WithRegistersModel, dino, loading)
    siglip_state, dino_state = siglip_model.state_dict(), dino_model.state_dict()

    name = "embeddings.position_embedding.weight"
    grid = image_size // siglip_model.config.patch_size
    siglip_state[name] = resample_positions(siglip_state[name][None], grid)[0]
    name = "embeddings.position_embeddings"
    grid = image_size // dino_model.config.patch_size
    dino_state[name] = resample_positions(dino_state[name], grid, prefix=1)

    configs = {
        "siglip": {key: getattr(siglip_model.config, key) for key in SIGLIP_KEYS},
        "dino": {key: getattr(dino_model.config, key) for key in DINO_KEYS},
    }
    return {"siglip": siglip_state, "dino": dino_state}, configs


def load_clip(clip: str, loading: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """State dict, configuration and image size of a CLIP vision model."""
    model = load_complete(CLIPVisionModel, clip, loading)
    return model.state_dict(), {key: getattr(model.config, key) for key in SIGLIP_KEYS}, model.config.image_size


def load_complete(model_class: type[PreTrainedModel], source: str, loading: Mapping[str, Any]) -> PreTrainedModel:
    """`from_pretrained`, but a checkpoint that lacks weights is refused instead of filled with random ones."""
    try:
        model, report = model_class.from_pretrained(source, output_loading_info=True, **loading)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{source} cannot be loaded as a {model_class.__name__}: {reason}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        found = f"{len(missing)} of its weights are missing, such as {missing[0]}"
        raise ValueError(f"{source} is no {model_class.__name__}: {found}.")
    return model


def resample_positions(table: Tensor, grid: int, prefix: int = 0) -> Tensor:
    """Resample a square position table (1, prefix + g*g, c) to (1, prefix + grid*grid, c).

    Bicubic with antialiasing in float32, as timm does on loading; the first `prefix` rows are kept. Equal sizes return
    the table itself.
    """
    old = round((table.shape[1] - prefix) ** 0.5)
    if old * old != table.shape[1] - prefix:
        raise ValueError(f"A position table of {table.shape[1] - prefix} entries is not a square grid.")
    if old == grid:
        return table
    image = rearrange(table[:, prefix:].float(), "1 (h w) c -> 1 c h w", h=old)
    image = F.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([table[:, :prefix], rearrange(image, "1 c h w -> 1 (h w) c").to(table.dtype)], dim=1)

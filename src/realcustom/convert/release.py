"""Checkpoints of the authors' release -> a stock diffusers U-Net, our adapter and our reference encoder.

The release keeps everything in one U-Net state dict: the stock SDXL keys, `to_k_vision` and `to_v_vision` in every
`attn2`, and the projector under `encoder_hidden_states_vision_projection`. Its backbones are timm state dicts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from realcustom.convert.states import check_keys, save_model, without_harmless
from realcustom.convert.timm import (
    dino_config_from_timm,
    dino_from_timm,
    siglip_config_from_timm,
    siglip_from_timm,
    vision_trunk,
)
from realcustom.encoders.image import ReferenceEncoder
from realcustom.hub.settings import AdapterSettings, CallDefaults
from realcustom.models.adapter import RealCustomAdapter
from realcustom.models.projector import build_projector
from realcustom.models.unet import cross_attention_names

PROJECTOR = "encoder_hidden_states_vision_projection."
STRAY = f"{PROJECTOR}scale_value."  # the release has it in some files and reads it in none
DEEP_ONLY = {"siglip_layers": (25,), "dino_layers": (22,)}
PIXELS_A_LATENT = 8

SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""Configuration of the SDXL base U-Net, which the release adapts."""

SDXL_VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
"""Configuration of SDXL's autoencoder."""

NEGATIVE_PROMPT = (
    "low quality, blurry, noisy, jpeg artifacts, overexposed, watermark, text, signature, cropped, out of frame, "
    "deformed, disfigured, bad anatomy, malformed hands, extra fingers, missing limbs, extra limbs, duplicate, "
    "unrealistic, flat, dull colors, ugly"
)
"""The release gives a long fixed list of such words; these are ours."""


@dataclass(frozen=True)
class SplitCheckpoint:
    """A release state dict taken apart.

    Attributes:
        unet: stock U-Net state dict; empty where the checkpoint holds the adapter alone.
        adapter: state dict of `RealCustomAdapter`.
        adapter_config: its configuration.
        left: names that were left out because they cannot change a picture.
    """

    unet: dict[str, Tensor]
    adapter: dict[str, Tensor]
    adapter_config: dict[str, Any]
    left: tuple[str, ...] = ()


def projector_config(state: Mapping[str, Tensor], dim_head: int = 64) -> dict[str, Any]:
    """The configuration that a released projector's state dict (without prefix) implies.

    The shallow variant is known by its second fusion. The head size is not in the weights.
    """
    missing = [name for name in ("projector.0.weight", "projector_base.weight") if name not in state]
    if missing:
        raise ValueError(f"The checkpoint's projector lacks {PROJECTOR}{missing[0]}.")
    out_dim, vision_dim = state["projector_base.weight"].shape
    return {
        "kind": "shallow" if any(name.startswith("min_attention2.") for name in state) else "deep",
        "vision_dim": vision_dim,
        "out_dim": out_dim,
        "dim_head": dim_head,
        "hidden_dim": state["projector.0.weight"].shape[0],
    }


def split_release_checkpoint(
    state: Mapping[str, Tensor], unet_shapes: Mapping[str, Sequence[int]], layers: Sequence[str], dim_head: int = 64
) -> SplitCheckpoint:
    """Take a release state dict apart.

    Args:
        state: U-Net, visual keys and values, and projector under the release's names.
        unet_shapes: name and shape of every tensor of the stock U-Net.
        layers: names of its cross-attention modules in running order (`cross_attention_names`).
        dim_head: head size of the projector's attention.

    Raises:
        ValueError: keys are unknown, missing or misshapen; all kinds are listed.
    """
    state, left = without_harmless(state)
    left += [name for name in state if name.startswith(STRAY)]
    state = {name: tensor for name, tensor in state.items() if not name.startswith(STRAY)}
    projector = {name.removeprefix(PROJECTOR): t for name, t in state.items() if name.startswith(PROJECTOR)}
    config = projector_config(projector, dim_head)
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in build_projector(config).state_dict().items()}

    expected = {f"{PROJECTOR}{name}": shape for name, shape in shapes.items()}
    renamed = {f"{PROJECTOR}{name}": f"projector.{name}" for name in shapes}
    widths = []
    for index, layer in enumerate(layers):
        # A visual key or value has the width of the layer's text key and value; its input is the projector's output.
        width = unet_shapes[f"{layer}.to_k.weight"][0]
        widths.append(width)
        for letter in "kv":
            name = f"{layer}.to_{letter}_vision.weight"
            expected[name] = (width, config["out_dim"])
            renamed[name] = f"to_{letter}.{index}.weight"
    if not state.keys().isdisjoint(unet_shapes):
        expected |= {name: tuple(shape) for name, shape in unet_shapes.items()}

    check_keys({name: tuple(tensor.shape) for name, tensor in state.items()}, expected)
    return SplitCheckpoint(
        unet={name: tensor for name, tensor in state.items() if name in unet_shapes},
        adapter={renamed[name]: tensor for name, tensor in state.items() if name in renamed},
        adapter_config={"layers": widths, "token_dim": config["out_dim"], "projector_config": config},
        left=tuple(left),
    )


def write_release(
    state: Mapping[str, Tensor],
    out: Path,
    unet_config: Mapping[str, Any] | None = None,
    dim_head: int = 64,
    dtype: torch.dtype | None = None,
) -> SplitCheckpoint:
    """Write `out/adapter/` and, where the state dict holds a U-Net, `out/unet/`.

    Args:
        state: of the release, all files together.
        unet_config: configuration of the stock U-Net; default the SDXL base's.
        dim_head: head size of the projector's attention, which the weights do not tell.
        dtype: of the weights written; None as they are.

    Raises:
        ValueError: keys are unknown, missing or misshapen.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(stock_config(unet_config))
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    split = split_release_checkpoint(state, shapes, cross_attention_names(unet), dim_head)
    with torch.device("meta"):
        adapter = RealCustomAdapter(**split.adapter_config)
    save_model(adapter, split.adapter, out / "adapter", dtype)
    if split.unet:
        save_model(unet, split.unet, out / "unet", dtype)
    return split


def stock_config(config: Mapping[str, Any] | Path | str | None) -> dict[str, Any]:
    """A U-Net's configuration, from a mapping or a JSON file, without what the release adds to it; default SDXL's."""
    if config is None:
        return dict(SDXL_UNET)
    if not isinstance(config, Mapping):
        try:
            config = json.loads(Path(config).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{config} is no readable JSON configuration of a U-Net.") from error
    added = ("image_prompt_settings", "vision_model_config")
    return {name: value for name, value in config.items() if name not in added}


def write_encoder(
    siglip: Mapping[str, Tensor],
    dino: Mapping[str, Tensor],
    out: Path,
    siglip_heads: int = 16,
    dino_heads: int = 16,
    dtype: torch.dtype | None = None,
    **encoder: Any,
) -> None:
    """Write both backbones to `out/reference_encoder/`.

    Args:
        siglip: timm's SigLIP ViT, also inside an open_clip checkpoint.
        dino: timm's DINOv2 ViT with registers, also in DINOv2's own layout.
        siglip_heads, dino_heads: attention heads, which the weights do not tell; so400m and ViT-L have 16.
        dtype: of the weights written; None as they are.
        encoder: further arguments of `ReferenceEncoder`: `siglip_layers`, `dino_layers`, `image_size`.

    Raises:
        ValueError: the weights do not fit.
    """
    siglip, dino = vision_trunk(siglip), vision_trunk(dino)
    with torch.device("meta"):
        model = ReferenceEncoder(
            siglip_config_from_timm(siglip, siglip_heads), dino_config_from_timm(dino, dino_heads), **encoder
        )
    size = model.config.image_size
    state = {f"siglip.{name}": tensor for name, tensor in siglip_from_timm(siglip, size).items()}
    state |= {f"dino.{name}": tensor for name, tensor in dino_from_timm(dino, size).items()}
    save_model(model, state, out / "reference_encoder", dtype)


def write_vae(
    state: Mapping[str, Tensor],
    out: Path,
    config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write an autoencoder under diffusers' names to `out/vae/`; `config` is SDXL's own by default."""
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(dict(config or SDXL_VAE))
    save_model(vae, without_harmless(state)[0], out / "vae", dtype)


def encoder_levels(kind: str) -> dict[str, tuple[int, ...]]:
    """As many levels as the projector reads: the deep-only one needs just the deepest."""
    return {} if kind == "shallow" else DEEP_ONLY


def released_settings(
    base: str | None, unet_config: Mapping[str, Any] | None = None, negative_prompt: str | None = None
) -> AdapterSettings:
    """What the release's app runs with: its sampler and conditioning, 25 steps, scale 3.5, a mask of a fifth of the
    picture that is frozen from step 12 on; the size is the U-Net's own (1024 x 1024)."""
    side = stock_config(unet_config)["sample_size"] * PIXELS_A_LATENT
    return AdapterSettings(
        base=base,
        scheduler="released",
        released_conditioning=True,
        origin="RealCustom++, the authors' release",
        defaults=CallDefaults(
            steps=25,
            height=side,
            width=side,
            guidance_scale=3.5,
            negative_prompt=NEGATIVE_PROMPT if negative_prompt is None else negative_prompt,
            mask={"scope": 0.2, "normalisation": "min-max-per-layer", "spread": 0, "updates": {"until": 12}},
        ),
    )

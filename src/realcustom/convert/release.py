"""Checkpoints of the authors' release -> a stock diffusers U-Net and our adapter.

The release keeps everything in one U-Net state dict: the stock SDXL keys, `to_k_vision` and `to_v_vision` in every
`attn2`, and the projector under `encoder_hidden_states_vision_projection`. Its backbones are timm state dicts.
"""

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from realcustom.convert.timm import (
    dino_config_from_timm,
    dino_from_timm,
    siglip_config_from_timm,
    siglip_from_timm,
    vision_trunk,
)
from realcustom.encoders.image import ReferenceEncoder
from realcustom.models.adapter import RealCustomAdapter
from realcustom.models.projector import build_projector
from realcustom.models.unet import cross_attention_names

PROJECTOR = "encoder_hidden_states_vision_projection."
LISTED = 20  # offending keys named in an error, of each kind

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


@dataclass(frozen=True)
class SplitCheckpoint:
    """A release state dict taken apart.

    Attributes:
        unet: stock U-Net state dict; empty where the checkpoint holds the adapter alone.
        adapter: state dict of `RealCustomAdapter`.
        adapter_config: its configuration.
    """

    unet: dict[str, Tensor]
    adapter: dict[str, Tensor]
    adapter_config: dict[str, Any]


def read_state(file: Path | str) -> dict[str, Tensor]:
    """A state dict from a safetensors file or a pickle, of which only tensors are read (`weights_only`).

    Raises:
        ValueError: the file is missing, damaged, or holds anything but named tensors.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"There is no checkpoint file {file}.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file} is refused: it is no checkpoint, or holds more than tensors.") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, KeyError) as error:
        raise ValueError(f"{file} is damaged or no checkpoint.") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} is no state dict: it must hold named tensors and nothing else.")
    return {name: tensor.contiguous() for name, tensor in state.items()}  # which safetensors asks for


def projector_config(state: Mapping[str, Tensor], dim_head: int = 64) -> dict[str, Any]:
    """The configuration that a released projector's state dict (without prefix) implies.

    The shallow variant is known by its second fusion. The head size is not in the weights.
    """
    missing = [name for name in ("projector.0.weight", "projector_base.weight") if name not in state]
    if missing:
        raise ValueError(f"The checkpoint's projector lacks {PROJECTOR}{missing[0]}.")
    out_dim, vision_dim = state["projector_base.weight"].shape
    config = {
        "kind": "shallow" if any(name.startswith("min_attention2.") for name in state) else "deep",
        "vision_dim": vision_dim,
        "out_dim": out_dim,
        "dim_head": dim_head,
        "hidden_dim": state["projector.0.weight"].shape[0],
    }
    return config | ({"adaptive_scale": True} if "scale_value.value" in state else {})


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
    )


def check_keys(found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> None:
    """Compare names and shapes; ValueError that lists unknown, missing and misshapen keys where they differ."""
    misshapen = [
        f"{name} {list(found[name])} instead of {list(expected[name])}"
        for name in sorted(found.keys() & expected.keys())
        if tuple(found[name]) != tuple(expected[name])
    ]
    problems = {
        "unknown": sorted(found.keys() - expected.keys()),
        "missing": sorted(expected.keys() - found.keys()),
        "misshapen": misshapen,
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"The checkpoint does not fit the U-Net's configuration: {listed}.")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def convert_release_checkpoint(
    files: Iterable[Path | str],
    out_folder: Path | str,
    unet_config: Mapping[str, Any] | Path | str | None = None,
    dim_head: int = 64,
) -> SplitCheckpoint:
    """Convert the release's checkpoint files to `out_folder/unet/` and `out_folder/adapter/`.

    Args:
        files: one file, or the base U-Net and then the RealCustom weights: where two hold the same key, the later
            counts, as in the released pipeline. Without any stock U-Net key only the adapter is written.
        out_folder: made where it does not exist.
        unet_config: configuration of the stock U-Net, as a mapping or a JSON file; default the SDXL base.
        dim_head: head size of the projector's attention, which the weights do not tell.

    Returns:
        What was written.

    Raises:
        ValueError: a file is unreadable or refused, or keys are unknown, missing or misshapen.
    """
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_state(file)
    if not state:
        raise ValueError("There is nothing to convert: no checkpoint file was given, or all are empty.")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(_stock_config(unet_config))
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    split = split_release_checkpoint(state, shapes, cross_attention_names(unet), dim_head)

    with torch.device("meta"):
        adapter = RealCustomAdapter(**split.adapter_config)
    adapter.load_state_dict(split.adapter, strict=True, assign=True)
    adapter.save_pretrained(Path(out_folder) / "adapter")
    if split.unet:
        unet.load_state_dict(split.unet, strict=True, assign=True)
        unet.save_pretrained(Path(out_folder) / "unet")
    return split


def _stock_config(config: Mapping[str, Any] | Path | str | None) -> dict[str, Any]:
    """The U-Net's configuration without what the release adds to it."""
    if config is None:
        return dict(SDXL_UNET)
    if not isinstance(config, Mapping):
        try:
            config = json.loads(Path(config).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{config} is no readable JSON configuration of a U-Net.") from error
    added = ("image_prompt_settings", "vision_model_config")
    return {name: value for name, value in config.items() if name not in added}


def convert_backbones(
    siglip: Path | str,
    dino: Path | str,
    out_folder: Path | str,
    siglip_heads: int = 16,
    dino_heads: int = 16,
    **encoder: Any,
) -> ReferenceEncoder:
    """Convert timm state-dict files of both backbones to `out_folder/reference_encoder/`.

    Args:
        siglip: timm's SigLIP ViT, also inside an open_clip checkpoint.
        dino: timm's DINOv2 ViT with registers, also in DINOv2's own layout.
        out_folder: made where it does not exist.
        siglip_heads, dino_heads: attention heads, which the weights do not tell; so400m and ViT-L have 16.
        encoder: further arguments of `ReferenceEncoder`: `siglip_layers`, `dino_layers`, `image_size`.

    Raises:
        ValueError: a file is unreadable, or its weights do not fit.
    """
    siglip_state, dino_state = vision_trunk(read_state(siglip)), vision_trunk(read_state(dino))
    model = ReferenceEncoder(
        siglip_config_from_timm(siglip_state, siglip_heads), dino_config_from_timm(dino_state, dino_heads), **encoder
    )
    size = model.config.image_size
    for part, state in (
        (model.siglip, siglip_from_timm(siglip_state, size)),
        (model.dino, dino_from_timm(dino_state, size)),
    ):
        found, expected = ({name: t.shape for name, t in each.items()} for each in (state, part.state_dict()))
        check_keys(found, expected)
        part.load_state_dict(state, strict=True)
    model.save_pretrained(Path(out_folder) / "reference_encoder")
    return model

"""Writes a tiny Stable Diffusion as one checkpoint file in the original (latent diffusion) layout."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_key(key: str, layers: int) -> str:
    """diffusers' U-Net key -> `model.diffusion_model.` key; `layers` is layers_per_block."""
    stem, kind = key.rsplit(".", 1)
    if stem in UNET_TOP:
        return f"{UNET_TOP[stem]}.{kind}"
    stage, rest = key.split(".", 1)
    if stage == "mid_block":
        part, index, rest = rest.split(".", 2)
        place = f"middle_block.{2 * int(index) if part == 'resnets' else 1}"
    else:
        block, part, index, rest = rest.split(".", 3)
        if part == "downsamplers":
            return f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        down = stage == "down_blocks"
        number = int(block) * (layers + 1) + (layers if part == "upsamplers" else int(index)) + (1 if down else 0)
        slot = {"resnets": 0, "attentions": 1, "upsamplers": 1}[part]
        place = f"{'input' if down else 'output'}_blocks.{number}.{slot}"
    if part == "resnets":
        name, kind = rest.rsplit(".", 1)
        rest = f"{UNET_RESNET[name]}.{kind}"
    return f"{place}.{rest}"


def vae_key(key: str, levels: int) -> str:
    """diffusers' VAE key -> `first_stage_model.` key; `levels` is the number of blocks."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in VAE_ATTENTION.items():
            key = key.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{levels - 1 - int(found[1])}.block", key)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", key)


def vae_tensor(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """The original's attention projections are 1 x 1 convolutions."""
    return tensor[:, :, None, None] if "attn_1" in key and tensor.dim() == 2 else tensor


def original_layout(pipe: StableDiffusionPipeline, folder: Path) -> tuple[Path, Path]:
    """Save the pipeline's configuration folder and its weights as one original-layout file.

    Returns:
        (configuration folder, checkpoint file).
    """
    config, checkpoint = folder / "config", folder / "model.safetensors"
    pipe.save_pretrained(config)
    state = {}
    for key, tensor in pipe.unet.state_dict().items():
        state[f"model.diffusion_model.{unet_key(key, pipe.unet.config.layers_per_block)}"] = tensor
    for key, tensor in pipe.vae.state_dict().items():
        name = vae_key(key, len(pipe.vae.config.block_out_channels))
        state[f"first_stage_model.{name}"] = vae_tensor(name, tensor)
    for key, tensor in pipe.text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.{'' if key.startswith('text_model') else 'text_model.'}{key}"] = tensor
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, checkpoint)
    return config, checkpoint

"""Repositories in the layouts of the real ones, at tiny width: the SDXL base, the release, SD v1.5, IP-Adapter."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import CAPTIONS, build_components, build_xl_components
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

PROJECTOR = "encoder_hidden_states_vision_projection."
WIDTH = 32  # of each backbone: 16 heads of 2
CLIP = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "projection_dim": 24,
    "image_size": 32, "patch_size": 8, "hidden_act": "gelu",
}  # fmt: skip
PATCH = 64  # pixels, so that a view of 384 has 36 tokens instead of 729


def timm_weights(
    width: int, mlp: int, depth: int, grid: int, patch: int, registers: int | None = None
) -> dict[str, Tensor]:
    """Random weights under timm's names; with `registers` DINOv2's, else SigLIP's with its pooling head."""
    torch.manual_seed(width)
    shapes = {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    shapes |= {"pos_embed": (1, grid * grid, width), "norm.weight": (width,), "norm.bias": (width,)}
    for index in range(depth):
        linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        linear |= {"mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}
        for name, shape in linear.items():
            shapes |= {f"blocks.{index}.{name}.weight": shape, f"blocks.{index}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"blocks.{index}.{name}"] = (width,)
        if registers is not None:
            shapes |= {f"blocks.{index}.ls1.gamma": (width,), f"blocks.{index}.ls2.gamma": (width,)}
    if registers is None:
        shapes |= {"attn_pool.latent": (1, 1, width), "attn_pool.q.weight": (width, width)}
    else:
        shapes |= {"cls_token": (1, 1, width), "reg_token": (1, registers, width), "mask_token": (1, width)}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def release_state(unet, whole: bool = True) -> dict[str, Tensor]:
    """A U-Net and RealCustom's weights beside it under the release's names; not `whole`: the latter alone."""
    from realcustom.models.projector import build_projector
    from realcustom.models.unet import cross_attention_names

    torch.manual_seed(1)
    out_dim = unet.config.cross_attention_dim
    state = dict(unet.state_dict()) if whole else {}
    projector = build_projector({"kind": "deep", "vision_dim": 2 * WIDTH, "out_dim": out_dim})
    state |= {PROJECTOR + name: tensor for name, tensor in projector.state_dict().items()}
    for name in cross_attention_names(unet):
        width = unet.get_submodule(name).to_q.out_features
        for letter in "kv":
            state[f"{name}.to_{letter}_vision.weight"] = torch.randn(width, out_dim) * 0.2
    return state


def build_release(folder: Path, unet, whole: bool = True) -> Path:
    """`ckpts/` as the authors' repository has it."""
    ckpts = folder / "ckpts"
    siglip = timm_weights(WIDTH, 48, 27, 6, PATCH)
    open_clip = {f"visual.trunk.{name}": tensor for name, tensor in siglip.items()}
    open_clip |= {"text.transformer.resblocks.0.ln_1.weight": torch.ones(4), "logit_scale": torch.tensor(1.0)}
    files = {
        "realcustom/RealCustom_highres.pth": release_state(unet, whole),
        "sdxl/unet/sdxl-unet.bin": dict(unet.state_dict()),
        "vit_so400m_patch14_siglip_384/open_clip_pytorch_model.bin": open_clip,
        "vit_large_patch14_reg4_dinov2.lvd142m/pytorch_model.bin": timm_weights(WIDTH, 2 * WIDTH, 24, 8, PATCH, 4),
    }
    for name, state in files.items():
        (ckpts / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, ckpts / name)
    (folder / "README.md").write_text("The release.\n")
    return folder


def wordy_tokenizer():
    """A tokenizer that reads the release's negative prompt within a prompt's length."""
    from realcustom.convert.release import NEGATIVE_PROMPT
    from realcustom.miniature.tokenizer import train_tokenizer

    tokenizer = train_tokenizer((*CAPTIONS, NEGATIVE_PROMPT))
    tokenizer.model_max_length = 77
    return tokenizer


def build_base(folder: Path, large: bool) -> tuple[Path, object]:
    """A stock base model with half-precision and full weights and, as on the hub, files nobody needs; its U-Net."""
    parts = (build_xl_components if large else build_components)(wordy_tokenizer())
    stock = {name: part for name, part in parts.items() if name not in ("adapter", "reference_encoder")}
    if large:
        base = StableDiffusionXLPipeline(**stock)
    else:
        base = StableDiffusionPipeline(
            **stock, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    base.save_pretrained(folder)
    base.save_pretrained(folder, variant="fp16")
    (folder / "unet" / "diffusion_flax_model.msgpack").write_bytes(b"\0" * 2000)
    (folder / "sd_base_1.0.safetensors").write_bytes(b"\0" * 5000)
    (folder / "README.md").write_text("A base model.\n")
    return folder, parts["unet"]


def linear_projection(cross: int) -> dict[str, torch.Tensor]:
    tokens = 4
    return {
        "proj.weight": torch.randn(tokens * cross, CLIP["projection_dim"]) * 0.3,
        "proj.bias": torch.randn(tokens * cross) * 0.3,
        "norm.weight": torch.randn(cross),
        "norm.bias": torch.randn(cross),
    }


def resampler(cross: int, hidden: int = 64, tokens: int = 6, depth: int = 4) -> dict[str, torch.Tensor]:
    """Heads of 64, as diffusers takes for granted; widths and depth as small as they can be."""
    inner = 128
    state = {
        "latents": torch.randn(1, tokens, hidden),
        "proj_in.weight": torch.randn(hidden, CLIP["hidden_size"]) * 0.3,
        "proj_in.bias": torch.randn(hidden) * 0.3,
        "proj_out.weight": torch.randn(cross, hidden) * 0.3,
        "proj_out.bias": torch.randn(cross) * 0.3,
        "norm_out.weight": torch.randn(cross),
        "norm_out.bias": torch.randn(cross),
    }
    for index in range(depth):
        block = f"layers.{index}."
        for name in ("0.norm1", "0.norm2", "1.0"):
            state |= {f"{block}{name}.weight": torch.randn(hidden), f"{block}{name}.bias": torch.randn(hidden)}
        shapes = {"0.to_q": (inner, hidden), "0.to_kv": (2 * inner, hidden), "0.to_out": (hidden, inner)}
        shapes |= {"1.1": (4 * hidden, hidden), "1.3": (hidden, 4 * hidden)}
        state |= {f"{block}{name}.weight": torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    return state


def build_ip_adapter(folder: Path, unet, plus: bool, ending: str, name: str = "ip-adapter") -> Path:
    """The layout of h94/IP-Adapter with random weights that matter; every layer's are different."""
    torch.manual_seed(5)
    cross = unet.config.cross_attention_dim
    attention = {}
    for number, layer in enumerate(unet.attn_processors):
        if layer.endswith("attn2.processor"):
            width = unet.get_submodule(layer.removesuffix(".processor")).to_q.out_features
            for letter in "kv":
                attention[f"{number}.to_{letter}_ip.weight"] = torch.randn(width, cross) * 0.3
    nested = {"image_proj": resampler(cross) if plus else linear_projection(cross), "ip_adapter": attention}
    file = folder / f"{name}.{ending}"
    if ending == "bin":
        torch.save(nested, file)
    else:
        save_file({f"{part}.{key}": t for part, state in nested.items() for key, t in state.items()}, file)
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP))
    encoder.save_pretrained(folder / "image_encoder")
    return file

"""A tiny random FLUX with all its parts, and a LoRA that does something; the same at every call."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import TEXT_WIDTH, text_config
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from realcustom.convert import uno
from realcustom.models.uno_lora import SharedLora

WORDS = ("a", "the", "dog", "cat", "red", "and", "on", "in", "beach", "sofa", "hat", "with")
T5_TOKENS = 24
VAE_STATISTICS = {"scaling_factor": 0.3611, "shift_factor": 0.1159}


def build_t5_tokenizer() -> T5Tokenizer:
    """Knows `WORDS` whole and spells all others."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0)]
    pieces += [(f"\u2581{word}", -2.0) for word in WORDS] + [("\u2581", -4.0)]
    pieces += [(chr(code), -6.0) for code in range(ord("a"), ord("z") + 1)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_TOKENS)


def build_transformer(guidance: bool = True) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=3,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        latent_channels=4,
        **VAE_STATISTICS,
    )


def build_flux_components(tokenizer, guidance: bool = True) -> dict:
    """Components of diffusers' FluxPipeline; `guidance` False is flux-schnell's kind."""
    torch.manual_seed(0)
    t5 = T5Config(
        vocab_size=64, d_model=TEXT_WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    transformer = build_transformer(guidance)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "norm" not in name:  # louder than the default, so that every part of the input counts
                parameter *= 2
    return {
        "vae": build_vae().eval(),
        "text_encoder": CLIPTextModel(text_config(tokenizer)).eval(),
        "text_encoder_2": T5EncoderModel(t5).eval(),
        "tokenizer": tokenizer,
        "tokenizer_2": build_t5_tokenizer(),
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0 if guidance else 1.0, use_dynamic_shifting=guidance),
    }


def build_uno_pipeline(tokenizer, guidance: bool = True):
    from realcustom import UNOPipeline

    pipe = UNOPipeline(**build_flux_components(tokenizer, guidance))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_flux_files(tokenizer, folder: Path) -> Path:
    """A stock FLUX folder base/, and dit_lora.safetensors in the layout of UNO's release."""
    pipe = build_uno_pipeline(tokenizer)
    pipe.save_pretrained(folder / "base")
    index = folder / "base" / "model_index.json"
    index.write_text(index.read_text().replace("UNOPipeline", "FluxPipeline"))
    lora = SharedLora(pipe.transformer, rank=2)
    for parameter in lora.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    (folder / "uno").mkdir()
    save_file(lora.released_state(), folder / "uno" / "dit_lora.safetensors")
    return folder


def released_state(transformer) -> dict[str, torch.Tensor]:
    """Its weights in Black Forest Labs' names, by the tables of the conversion, which the parity tests hold."""
    state = dict(transformer.state_dict())
    released = {}
    for stage, blocks, table in (
        ("double", "transformer_blocks", uno._DOUBLE),
        ("single", "single_transformer_blocks", uno._SINGLE),
    ):
        for index in range(len(getattr(transformer, blocks))):
            for name, parts in table.items():
                for kind in ("weight", "bias"):
                    whole = [f"{blocks}.{index}.{part}" for part in parts]
                    names = whole if name.endswith(".scale") else [f"{part}.{kind}" for part in whole]
                    if all(part in state for part in names):
                        key = f"{stage}_blocks.{index}.{name}" + ("" if name.endswith(".scale") else f".{kind}")
                        released[key] = torch.cat([state.pop(part) for part in names])
    for kind in ("weight", "bias"):
        scale, shift = state.pop(f"norm_out.linear.{kind}").chunk(2)
        released[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
        for name, part in uno._OUTSIDE.items():
            released[f"{name}.{kind}"] = state.pop(f"{part}.{kind}")
        for name, part in uno._EMBEDDERS.items():
            for number, layer in ((1, "in_layer"), (2, "out_layer")):
                released[f"{name}.{layer}.{kind}"] = state.pop(f"time_text_embed.{part}.linear_{number}.{kind}")
    assert not state
    return {name: tensor.contiguous() for name, tensor in released.items()}

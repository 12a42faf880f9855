"""UNO at FLUX.1-dev's size, without weights and without memory: counts, and the bytes that each way of running holds.

Every network is built on the meta device and a pass with references runs its shapes through. Nothing is estimated but
what lies between the layers of a pass, which is left out.

    python benchmarks/real_size_flux.py
"""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from realcustom.models.flow import image_tokens
from realcustom.models.uno import ReferenceTokens, grid_ids, velocity
from realcustom.models.uno_lora import SharedLora

RANK, TEXT_TOKENS = 512, 512
GIB = 2**30
FLUX_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}


@dataclass(frozen=True, kw_only=True)
class FluxSize:
    """Parameters and bytes of weights of each network, the latter in bfloat16 and, stored, in fp8 (layerwise casting).

    block: bytes of the largest block of the transformer in bfloat16, LoRA included: what stays with group offloading.
    """

    parameters: dict[str, int]
    bf16: dict[str, int]
    fp8: dict[str, int]
    block: int


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def held(module: nn.Module) -> int:
    """Bytes of the parameters as they are stored."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def build() -> dict[str, nn.Module]:
    """All networks on the meta device in bfloat16."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
        networks = {
            "transformer": transformer,
            "lora": SharedLora(transformer, RANK),
            "t5": T5EncoderModel(T5Config(**T5_XXL, feed_forward_proj="gated-gelu")),
            "clip": CLIPTextModel(CLIPTextConfig(**CLIP_L)),
            "vae": AutoencoderKL(**FLUX_VAE),
        }
    return {name: nn.Module.to(network, torch.bfloat16) for name, network in networks.items()}


@torch.no_grad()
def check_pass(transformer: FluxTransformer2DModel, lora: SharedLora) -> None:
    """The shapes of one pass at 512 x 512 with two references of 320 x 320; ValueError where they do not come back."""
    meta = {"device": "meta", "dtype": torch.bfloat16}
    grid, reference = (32, 32), (20, 20)
    tokens, text = torch.zeros(1, 1024, 64, **meta), torch.zeros(1, TEXT_TOKENS, 4096, **meta)
    conditions = {"pooled_projections": torch.zeros(1, 768, **meta), "guidance": torch.zeros(1, **meta)}
    references = ReferenceTokens(
        tokens=torch.zeros(1, 800, 64, **meta),
        ids=torch.cat([grid_ids(reference, (start, start), "meta") for start in (32, 52)]),
        counts=(400, 400),
    )
    with lora.attached(transformer):
        out = velocity(
            transformer, tokens, grid_ids(grid, device="meta"), torch.zeros(1, **meta), text, conditions, references
        )
    if out.shape != tokens.shape:
        raise ValueError(f"The transformer gives {tuple(out.shape)} for {tuple(tokens.shape)}.")


def dry_run() -> FluxSize:
    """Build everything, run the shapes, count."""
    networks = build()
    check_pass(networks["transformer"], networks["lora"])
    bf16 = {name: held(network) for name, network in networks.items()}
    transformer = networks["transformer"]
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    pairs = [(name.replace("/", ".").split("."), pair) for name, pair in networks["lora"].pairs.items()]
    stages = {"double_blocks": 0, "single_blocks": len(transformer.transformer_blocks)}
    added = [0] * len(blocks)
    for (stage, index, *_), pair in pairs:
        added[stages[stage] + int(index)] += held(pair)
    block = max(held(module) + extra for module, extra in zip(blocks, added, strict=True))
    transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    parameters = {name: count(network) for name, network in networks.items()}
    return FluxSize(parameters=parameters, bf16=bf16, fp8={**bf16, "transformer": held(transformer)}, block=block)


def bias_bytes(side: int, references: int, reference_side: int) -> int:
    """Of the attention mask of one image in bfloat16, held once a pass."""
    length = TEXT_TOKENS + image_tokens(side, side) + references * image_tokens(reference_side, reference_side)
    return 2 * length**2


def report(size: FluxSize) -> str:
    """Counts and memory as a Markdown table."""
    lines = ["| network | parameters | bf16, GiB | fp8 stored, GiB |", "|---|---|---|---|"]
    for name, parameters in size.parameters.items():
        stored = f"{size.fp8[name] / GIB:.2f}"
        lines.append(f"| {name} | {parameters / 1e6:.1f} M | {size.bf16[name] / GIB:.2f} | {stored} |")
    on_device = {
        "all on the device, bf16": sum(size.bf16.values()),
        "all on the device, transformer fp8": sum(size.fp8.values()),
        "model offload, bf16: transformer and LoRA": size.bf16["transformer"] + size.bf16["lora"],
        "model offload, transformer fp8: the larger of transformer with LoRA and T5": max(
            size.fp8["transformer"] + size.fp8["lora"], size.fp8["t5"]
        ),
        "group offload, bf16: the largest block with its LoRA": size.block,
        "training: bf16 base; float32 LoRA, its gradients and AdamW": sum(size.bf16.values())
        - size.bf16["lora"]
        + 16 * size.parameters["lora"],
        "attention mask, 512 px, two references of 320 px": bias_bytes(512, 2, 320),
        "attention mask, 1024 px, four references of 320 px": bias_bytes(1024, 4, 320),
    }
    lines += ["", "| weights on the device | GiB |", "|---|---|"]
    lines += [f"| {name} | {held_bytes / GIB:.2f} |" for name, held_bytes in on_device.items()]
    return "\n".join(lines)


def main() -> None:
    print(report(dry_run()))


if __name__ == "__main__":
    main()

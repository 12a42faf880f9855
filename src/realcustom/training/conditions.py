"""What the frozen base model is told: latents, prompt embeddings and SDXL's extra conditions, from a batch.

Shapes: B samples, T text positions, t text channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from realcustom.models.backbone import Text

from .autoencoder import to_signed
from .config import Batch, Modules


@torch.no_grad()
def latents_of(modules: Modules, batch: Batch, generator: torch.Generator) -> Tensor:
    """Scaled latents (B, C, h, w): the cached ones, or the frozen autoencoder's of batch["pixels"] uint8 (B, 3, H, W).

    A KL autoencoder is sampled, in float32, since SDXL's overflows in half precision.
    """
    if "latents" in batch:
        return batch["latents"].float()
    vae = modules["vae"]
    with torch.autocast(batch["pixels"].device.type, enabled=False):
        encoded = vae.encode(to_signed(batch["pixels"]).to(vae.dtype))
    if hasattr(encoded, "latents"):
        latents = encoded.latents
    else:
        spread = encoded.latent_dist
        noise = torch.randn(spread.mean.shape, generator=generator, device=spread.mean.device, dtype=spread.mean.dtype)
        latents = spread.mean + spread.std * noise
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return ((latents - shift) * vae.config.scaling_factor).float()


@torch.no_grad()
def encode_text(modules: Modules, tokens: Tensor, batch: Batch) -> Text:
    """SD v1.5 and the miniature: the last hidden states of one text encoder; tokens (B, T)."""
    return Text(embeds=modules["text_encoder"](input_ids=tokens).last_hidden_state)


@torch.no_grad()
def encode_text_xl(modules: Modules, tokens: Tensor, batch: Batch) -> Text:
    """SDXL: the second-to-last hidden states of both text encoders, the second one's pooled text and the sizes.

    Both encoders read the same tokens: their tokenizers differ in the padding token only, which is exchanged after the
    end of the text.

    Args:
        modules: with text_encoder and text_encoder_2.
        tokens: (B, T) of the first tokenizer.
        batch: "sizes" int (B, 6): original height, width, crop top, left, target height, width.
    """
    first = modules["text_encoder"](input_ids=tokens, output_hidden_states=True)
    second = modules["text_encoder_2"](input_ids=with_padding(tokens, 0), output_hidden_states=True)
    embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return Text(embeds=embeds, added={"text_embeds": second.text_embeds, "time_ids": batch["sizes"].to(embeds.dtype)})


def with_padding(tokens: Tensor, padding: int) -> Tensor:
    """Tokens (B, T) padded with their own end token, the highest number, padded with another number instead."""
    end = tokens.max(dim=1, keepdim=True).values
    after_end = (tokens == end).cumsum(dim=1) > 1
    return tokens.masked_fill(after_end, padding)

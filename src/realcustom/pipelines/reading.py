"""Prompts of a style of their own (`realcustom.encoders.prompts`) through the stock text encoders, as embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers

from realcustom.encoders.chunks import Encode, chunk_count, encode_chunks
from realcustom.encoders.prompts import PromptStyle, Weighted, read_weights


@dataclass(frozen=True)
class Embedded:
    """Prompts and negative prompts as `encode_prompt` takes them; pooled text for SDXL only.

    Attributes:
        embeds, negative: (P, k T, c); `negative` is None where no negative prompt is read.
        pooled, negative_pooled: (P, c') or None.
    """

    embeds: torch.Tensor
    negative: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    negative_pooled: torch.Tensor | None = None


def style_of(call: Mapping[str, Any]) -> PromptStyle:
    """How the prompts of a call are read."""
    return PromptStyle(long=bool(call["long_prompts"]), weighted=bool(call["prompt_weights"]))


def marked(texts: Sequence[str], style: PromptStyle) -> list[Weighted]:
    """Texts with the weights of their characters."""
    return [read_weights(text) if style.weighted else Weighted(text, (1.0,) * len(text)) for text in texts]


def embed_prompts(
    readers: Sequence[tuple[Any, Encode]],
    prompts: Sequence[Sequence[str]],
    negatives: Sequence[Sequence[str]] | None,
    style: PromptStyle,
) -> Embedded:
    """Prompts, and negative ones in as many chunks.

    Args:
        readers: tokenizer and encoder, one pair or SDXL's two.
        prompts, negatives: for each of them the prompts it reads.
    """
    columns = [[marked(texts, style) for texts in side] for side in (prompts, negatives or [])]
    chunks = 1
    if style.long:
        chunks = max(
            chunk_count(tokenizer, [prompt.text for prompt in texts])
            for side in columns
            for (tokenizer, _), texts in zip(readers, side or [[] for _ in readers], strict=True)
        )
    sides = []
    for side in columns:
        parts = [
            encode_chunks(encode, tokenizer, texts, chunks)
            for (tokenizer, encode), texts in zip(readers, side, strict=False)
        ]
        embeds = torch.cat([part[0] for part in parts], dim=-1) if parts else None
        sides += [embeds, parts[-1][1] if parts else None]
    embeds, pooled, negative, negative_pooled = sides
    return Embedded(embeds, negative, pooled, negative_pooled)


def clip_reader(encoder, device: torch.device, clip_skip: int | None) -> Encode:
    """SD v1.5's encoder as its pipeline asks it."""

    def encode(ids: torch.Tensor) -> tuple[torch.Tensor, None]:
        if clip_skip is None:
            return encoder(ids.to(device))[0], None
        states = encoder(ids.to(device), output_hidden_states=True).hidden_states
        return encoder.text_model.final_layer_norm(states[-(clip_skip + 1)]), None

    return encode


def penultimate_reader(encoder, device: torch.device, clip_skip: int | None) -> Encode:
    """One of SDXL's encoders as its pipeline asks it: the last layer but one, and the pooled text of the second."""

    def encode(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        out = encoder(ids.to(device), output_hidden_states=True)
        pooled = out[0] if out[0].ndim == 2 else None
        return out.hidden_states[-2 if clip_skip is None else -(clip_skip + 2)], pooled

    return encode


@contextmanager
def lora_scaled(encoders: Sequence[Any], scale: float | None) -> Iterator[None]:
    """Text encoders with their LoRA at a scale, as `encode_prompt` sets it."""
    active = [encoder for encoder in encoders if scale is not None and USE_PEFT_BACKEND]
    for encoder in active:
        scale_lora_layers(encoder, scale)
    try:
        yield
    finally:
        for encoder in active:
            unscale_lora_layers(encoder, scale)

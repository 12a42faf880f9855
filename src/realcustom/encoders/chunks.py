"""Long and weighted prompts as embeddings: chunk by chunk through a stock text encoder.

A weight w moves a token's embedding z on its way from the empty prompt's embedding e at the same place: e + w (z - e),
so that 1 changes nothing and 0 says nothing.

Shapes: P prompts, k chunks, T = 77 tokens of a chunk, c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange

from realcustom.encoders.prompts import Weighted


def chunk_count(tokenizer, texts: Sequence[str]) -> int:
    """How many chunks the longest of some texts takes; at least 1."""
    longest = max((len(_encoded(tokenizer, text)["input_ids"]) for text in texts), default=0)
    return max(1, -(-longest // (tokenizer.model_max_length - 2)))


def token_chunks(tokenizer, text: str, weights: Sequence[float], chunks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers and weights (k, T) of a text, padded as the tokenizer pads."""
    length, inner = tokenizer.model_max_length, tokenizer.model_max_length - 2
    encoded = _encoded(tokenizer, text)
    numbers, offsets = encoded["input_ids"][: chunks * inner], encoded["offset_mapping"]
    ids = torch.full((chunks, length), tokenizer.pad_token_id)
    factors = torch.ones(chunks, length)
    for chunk in range(chunks):
        part = numbers[chunk * inner : (chunk + 1) * inner]
        ids[chunk, : len(part) + 2] = torch.tensor([tokenizer.bos_token_id, *part, tokenizer.eos_token_id])
        for place, (start, end) in enumerate(offsets[chunk * inner : chunk * inner + len(part)]):
            if end > start:
                factors[chunk, place + 1] = sum(weights[start:end]) / (end - start)
    return ids, factors


Encode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""Token numbers (B, T) -> embeddings (B, T, c) and pooled text (B, c') or None."""


def encode_chunks(
    encode: Encode, tokenizer, prompts: Sequence[Weighted], chunks: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompts read in `chunks` chunks each.

    Returns:
        embeddings (P, k T, c), and the pooled text of each prompt's first chunk, (P, c').
    """
    pairs = [token_chunks(tokenizer, prompt.text, prompt.weights, chunks) for prompt in prompts]
    ids, weights = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    embeds, pooled = encode(ids)
    if (weights != 1).any():
        empty, _ = encode(token_chunks(tokenizer, "", (), 1)[0])
        factors = weights[..., None].to(embeds)
        embeds = torch.where(factors == 1, embeds, empty + factors * (embeds - empty))
    embeds = rearrange(embeds, "(p k) t c -> p (k t) c", k=chunks)
    return embeds, None if pooled is None else pooled[::chunks]


def _encoded(tokenizer, text: str):
    return tokenizer(text, truncation=False, add_special_tokens=False, return_offsets_mapping=True, verbose=False)

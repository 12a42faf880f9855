"""Prompts as users write them: longer than the encoder reads, and with weights.

A long prompt is read in chunks of as many tokens as the encoder takes between start and end, each by itself, and their
embeddings stand one after the other, as the popular interfaces do it. A weight moves a token's embedding away from that
of the empty prompt at its place, or towards it: e + w (z - e), so that 1 changes nothing and 0 says nothing.

Shapes: P prompts, k chunks, T = 77 tokens of a chunk, c channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange

from realcustom.checks import finite

UP, DOWN = 1.1, 1 / 1.1  # of (word) and [word]
MOST_WEIGHT = 10.0
DEEPEST = 16
PIECE = re.compile(r"\\.|:\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[()\[\]]|[^\\()\[\]:]+|:", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class PromptStyle:
    """How a prompt is read. long: in chunks, none is too long. weighted: parentheses and brackets weigh words."""

    long: bool = False
    weighted: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is read as the stock pipeline reads it."""
        return not (self.long or self.weighted)


@dataclass(frozen=True)
class Weighted:
    """A prompt's text without its marks, and the weight of each of its characters."""

    text: str
    weights: tuple[float, ...]


def read_weights(prompt: str) -> Weighted:
    r"""(word) counts 1.1, (word:1.3) counts 1.3, [word] 1 / 1.1, nested ones multiply; \( is a parenthesis.

    Raises:
        ValueError: marks do not close, are nested too deeply, or a weight is out of 0 to 10; one sentence.
    """
    text, weights, opened = "", [], []
    for match in PIECE.finditer(prompt):
        piece = match[0]
        if piece in "([":
            if len(opened) == DEEPEST:
                raise ValueError(f'The weights of "{_short(prompt)}" are nested too deeply.')
            opened.append((piece, len(text)))
            continue
        number = match["number"]
        if piece == ")" or piece == "]" or (number is not None and opened and opened[-1][0] == "("):
            if not opened or (piece == "]") != (opened[-1][0] == "["):
                raise ValueError(f'"{piece[-1]}" closes nothing in "{_short(prompt)}"; write \\{piece[-1]} for itself.')
            start = opened.pop()[1]
            factor = UP if piece == ")" else DOWN if piece == "]" else float(number)
            finite("A weight in the prompt", factor, 0.0, MOST_WEIGHT)
            weights[start:] = [weight * factor for weight in weights[start:]]
            continue
        piece = piece[1:] if piece[0] == "\\" and len(piece) == 2 and piece[1] in "()[]\\" else piece
        text += piece
        weights += [1.0] * len(piece)
    if opened:
        raise ValueError(f'"{opened[-1][0]}" is not closed in "{_short(prompt)}"; write \\{opened[-1][0]} for itself.')
    return Weighted(text, tuple(weights))


def plain_text(prompt: str, style: PromptStyle) -> str:
    """What a prompt says, without the marks of its weights."""
    return read_weights(prompt).text if style.weighted else prompt


def place_in_chunks(index: int, length: int) -> int:
    """Where the token that is the `index`-th of a whole prompt (0 is the start token) stands among chunks of `length`
    tokens, each with a start and an end token of its own."""
    chunk, place = divmod(index - 1, length - 2)
    return chunk * length + 1 + place


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


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= 80 else f"{prompt[:77]}..."

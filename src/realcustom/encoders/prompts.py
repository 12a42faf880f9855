"""Prompts as users write them: longer than the encoder reads, and with weights.

A long prompt is read in chunks of as many tokens as the encoder takes between start and end, each by itself, and their
embeddings stand one after the other, as the popular interfaces do it. A weight moves a token's embedding away from that
of the empty prompt at its place, or towards it. This is what the text alone tells; `realcustom.encoders.chunks` encodes
it. Needs no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

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


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= 80 else f"{prompt[:77]}..."

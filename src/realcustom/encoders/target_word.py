"""From a real word of the prompt to the positions of its tokens.

The word is found as a whole word ("cat" is not in "category"), in any case, at every place where it stands, and mapped
to positions by the tokenizer's own character offsets. What cannot be mapped is refused in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Span = tuple[int, int]


def find_phrase(prompt: str, phrase: str) -> list[Span]:
    """Character spans of `phrase` in `prompt`: whole words, any case, any white space between its words.

    A hyphen joins words ("dog" is not found in "dog-like"); an apostrophe does not ("dog" is found in "dog's").

    Raises:
        ValueError: the phrase is empty.
    """
    words = phrase.split()
    if not words:
        raise ValueError("A subject's word is empty: name the word of the prompt that the subject is.")
    pattern = r"(?<![\w-])" + r"\s+".join(re.escape(word) for word in words) + r"(?!\w|-\w)"
    return [match.span() for match in re.finditer(pattern, prompt, flags=re.IGNORECASE)]


def check_prompt_length(tokenizer, prompt: str, name: str = "prompt") -> None:
    """Refuse a prompt, called `name`, that the tokenizer would cut.

    Raises:
        ValueError: the prompt has more tokens than `tokenizer.model_max_length`.
    """
    tokens = len(tokenizer(prompt, truncation=False, verbose=False)["input_ids"])
    if tokens > tokenizer.model_max_length:
        raise ValueError(
            f"The {name} has {tokens} tokens and the model reads {tokenizer.model_max_length} (start and end token "
            f"included): shorten it by {tokens - tokenizer.model_max_length} tokens."
        )


def target_token_positions(tokenizer, prompt: str, phrase: str) -> tuple[int, ...]:
    """Positions of all tokens of `phrase` in the tokenized `prompt` (the start token is position 0).

    Args:
        tokenizer: a fast tokenizer (one that returns character offsets).
        prompt: the whole prompt.
        phrase: a word or several words that stand in the prompt.

    Raises:
        ValueError: the phrase does not stand in the prompt, or lies beyond the tokenizer's limit.
    """
    spans = find_phrase(prompt, phrase)
    if not spans:
        words = ", ".join(dict.fromkeys(re.findall(r"[\w'-]+", prompt)))
        raise ValueError(f'"{phrase}" does not stand in the prompt "{prompt}"; its words are: {words}.')
    encoded = tokenizer(prompt, truncation=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    positions = tuple(
        index
        for index, (start, end) in enumerate(offsets)
        if end > start and any(start < span_end and end > span_start for span_start, span_end in spans)
    )
    last = tokenizer.model_max_length - 2
    if not positions or positions[-1] > last:
        raise ValueError(
            f'"{phrase}" lies beyond the {tokenizer.model_max_length} tokens that the model reads of the prompt '
            f'"{prompt}": move it forward or shorten the prompt.'
        )
    return positions


def agreed_positions(tokenizers: Sequence, prompts: Sequence[str], phrase: str) -> tuple[int, ...]:
    """Positions on which all tokenizers agree (SDXL reads the prompt with two).

    Raises:
        ValueError: as `target_token_positions`, or the tokenizers place the phrase differently.
    """
    found = [
        target_token_positions(tokenizer, prompt, phrase) for tokenizer, prompt in zip(tokenizers, prompts, strict=True)
    ]
    if any(positions != found[0] for positions in found[1:]):
        raise ValueError(
            f'The model\'s tokenizers place "{phrase}" at different tokens ({", ".join(map(str, found))}): '
            "word the prompt differently, or use the same text for prompt and prompt_2."
        )
    return found[0]


def check_disjoint(positions: Mapping[str, Sequence[int]], prompt: str) -> None:
    """Refuse subjects whose words share tokens.

    Raises:
        ValueError: names the two words.
    """
    owner: dict[int, str] = {}
    for phrase, indices in positions.items():
        for index in indices:
            other = owner.setdefault(index, phrase)
            if other != phrase:
                raise ValueError(
                    f'The words "{other}" and "{phrase}" of two subjects overlap in the prompt "{prompt}": '
                    "give each subject words of its own."
                )

"""From a real word of the prompt to the positions of its tokens.

A subject's key is a word or phrase ("dog"), found as a whole word ("cat" is not in "category") in any case at every
place where it stands, or at chosen places: "dog#2" is the second "dog", "dog#1#3" the first and the third. Where the
key itself stands in the prompt, number sign and all, that is meant. Places become positions by the tokenizer's own
character offsets. What cannot be mapped is refused in a sentence.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from realcustom.encoders.prompts import place_in_chunks

Span = tuple[int, int]

HYPHENS = frozenset("-\u2010\u2011")
JOINERS = frozenset("\u200c\u200d")  # they stand within words, as Persian ones
# Scripts written without spaces, by how the names of their characters begin.
UNSPACED = ("CJK ", "HIRAGANA ", "KATAKANA", "IDEOGRAPHIC ", "BOPOMOFO ", "THAI ", "LAO ", "KHMER ", "MYANMAR ")
NUMBERS = re.compile(r"(?:#[1-9][0-9]{0,3})+\Z")


def find_phrase(prompt: str, phrase: str) -> list[Span]:
    """Character spans of `phrase` in `prompt`: whole words, any case, any white space between its words.

    A hyphen joins words ("dog" is not found in "dog-like"), and so does a combining mark; an apostrophe does not ("dog"
    is found in "dog's"). Composed and decomposed forms of a character are the same. Scripts that are written without
    spaces show no borders of words, so beside one of their characters every place is a border.

    Raises:
        ValueError: the phrase is empty.
    """
    words = unicodedata.normalize("NFC", phrase).split()
    if not words:
        raise ValueError("A subject's word is empty: name the word of the prompt that the subject is.")
    pattern = re.compile(r"\s+".join(re.escape(word) for word in words), flags=re.IGNORECASE)
    text, places = _composed(prompt)
    spans, at = [], 0
    while match := pattern.search(text, at):
        start, end = match.span()
        alone = _stands_alone(text, start, end)
        if alone:
            spans.append((places[start], places[end]))
        at = end if alone else start + 1
    return spans


def occurrence(key: str) -> tuple[str, tuple[int, ...]]:
    """A subject's key as its phrase and the places chosen, from 1: "dog#2" is ("dog", (2,)), "dog" is ("dog", ())."""
    match = NUMBERS.search(key)
    if match is None or not key[: match.start()].strip():
        return key, ()
    return key[: match.start()], tuple(sorted({int(number) for number in match[0].split("#")[1:]}))


def find_target(prompt: str, key: str) -> list[Span]:
    """Character spans that a subject's key means; none where it does not stand in the prompt, or not so often.

    Raises:
        ValueError: the key is empty.
    """
    spans = find_phrase(prompt, key)
    if spans:
        return spans
    phrase, numbers = occurrence(key)
    spans = find_phrase(prompt, phrase)
    return [spans[number - 1] for number in numbers] if numbers and numbers[-1] <= len(spans) else []


def target_spans(prompt: str, key: str) -> list[Span]:
    """As `find_target`, but at least one span.

    Raises:
        ValueError: the phrase does not stand in the prompt, whose words it names, or stands there less often.
    """
    spans = find_target(prompt, key)
    if spans:
        return spans
    phrase, numbers = occurrence(key)
    count = len(find_phrase(prompt, phrase))
    if numbers and count:
        raise ValueError(f'"{key}" asks for place {numbers[-1]} of "{phrase}", which has {count} in "{prompt}".')
    words = ", ".join(filter(None, dict.fromkeys(word.strip('.,;:!?()"') for word in prompt.split())))
    raise ValueError(f'"{key}" does not stand in the prompt "{prompt}"; its words are: {words}.')


def target_key(prompt: str, phrase: str, ranges: Iterable[Span]) -> str:
    """The key of those places of `phrase` in `prompt` that lie within one of `ranges`: "dog" for all, else "dog#2".

    Raises:
        ValueError: the phrase stands in none of them as a word of its own.
    """
    ranges, spans = list(ranges), find_phrase(prompt, phrase)
    chosen = [span for span in spans if any(low <= span[0] and span[1] <= high for low, high in ranges)]
    key = phrase if chosen == spans else phrase + "".join(f"#{spans.index(span) + 1}" for span in chosen)
    if not chosen or find_target(prompt, key) != chosen:
        raise ValueError(f'"{phrase}" does not stand as a word of its own in "{prompt}" where it is meant.')
    return key


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


def target_token_positions(tokenizer, prompt: str, key: str, chunked: bool = False) -> tuple[int, ...]:
    """Positions of all tokens that a subject's key means in the tokenized `prompt` (the start token is position 0).

    Args:
        tokenizer: a fast tokenizer (one that returns character offsets).
        prompt: the whole prompt, the vectors of a textual inversion spelled out ("<rex> <rex>_1").
        key: a word or phrase of the prompt, perhaps with its place; a textual inversion is named by its first vector.
        chunked: whether the prompt is read in chunks (`realcustom.encoders.prompts`); then none lies too far.

    Raises:
        ValueError: as `target_spans`, or the words lie beyond the tokenizer's limit.
    """
    from diffusers.loaders import TextualInversionLoaderMixin

    spans = target_spans(prompt, TextualInversionLoaderMixin().maybe_convert_prompt(key, tokenizer))
    encoded = tokenizer(prompt, truncation=False, return_offsets_mapping=True, verbose=False)
    positions = tuple(
        index
        for index, (start, end) in enumerate(encoded["offset_mapping"])
        if end > start and any(start < span_end and end > span_start for span_start, span_end in spans)
    )
    if chunked and positions:
        return tuple(place_in_chunks(index, tokenizer.model_max_length) for index in positions)
    last = tokenizer.model_max_length - 2
    if not positions or positions[-1] > last:
        raise ValueError(
            f'"{key}" lies beyond the {tokenizer.model_max_length} tokens that the model reads of the prompt '
            f'"{prompt}": move it forward or shorten the prompt.'
        )
    return positions


def agreed_positions(tokenizers: Sequence, prompts: Sequence[str], key: str, chunked: bool = False) -> tuple[int, ...]:
    """Positions on which all tokenizers agree (SDXL reads the prompt with two).

    Raises:
        ValueError: as `target_token_positions`, or the tokenizers place the phrase differently.
    """
    found = [
        target_token_positions(tokenizer, prompt, key, chunked)
        for tokenizer, prompt in zip(tokenizers, prompts, strict=True)
    ]
    if any(positions != found[0] for positions in found[1:]):
        raise ValueError(
            f'The model\'s tokenizers place "{key}" at different tokens ({", ".join(map(str, found))}): '
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
                    'give each subject words of its own, or places such as "dog#1" and "dog#2".'
                )


def _composed(text: str) -> tuple[str, list[int]]:
    """The text in composed form (NFC), and where in `text` each of its characters begins, its end included."""
    if unicodedata.is_normalized("NFC", text):
        return text, list(range(len(text) + 1))
    composed, places, start = "", [], 0
    while start < len(text):
        piece, end = text[start], start + 1
        while end < len(text):
            longer = unicodedata.normalize("NFC", text[start : end + 1])
            if not unicodedata.combining(text[end]) and longer == piece + unicodedata.normalize("NFC", text[end]):
                break
            piece, end = longer, end + 1
        piece = unicodedata.normalize("NFC", piece)
        composed += piece
        places += [start] * len(piece)
        start = end
    return composed, [*places, len(text)]


def _stands_alone(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 2]
    if before in HYPHENS or _continues(before, text[start]):
        return False
    if after[:1] in HYPHENS:
        return not _in_word(after[1:])
    return not (_is_mark(after[:1]) or _continues(after[:1], text[end - 1]))


def _continues(outside: str, inside: str) -> bool:
    """Whether a word goes on beyond its found part; "" is the end of the text."""
    unspaced = any(unicodedata.name(char, "").startswith(UNSPACED) for char in (outside + inside))
    return _in_word(outside) and not unspaced


def _in_word(char: str) -> bool:
    return char.isalnum() or char == "_" or char in JOINERS or _is_mark(char)


def _is_mark(char: str) -> bool:
    return bool(char) and unicodedata.category(char).startswith("M")

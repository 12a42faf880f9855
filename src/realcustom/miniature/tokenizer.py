"""The miniature's tokenizer: CLIP's format and rules, with a small vocabulary of its own.

Every word of the training captions is one token; any other text falls back to pieces of known words and, in the end,
to single bytes, so that no prompt is refused and none becomes an unknown token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

WORD_END = "</w>"
START = "<|startoftext|>"
END = "<|endoftext|>"
MAX_TOKENS = 32
"""The longest caption of the sticker world has 24; every position costs time in each cross-attention."""


def train_tokenizer(corpus: Iterable[str], max_merges: int = 8192) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learned from captions.

    Without a limit in its way the byte-pair training ends when every word of the corpus is one token, which for the
    captions of the sticker world is after about a thousand merges.

    Args:
        corpus: captions; every word that must be one token stands in it at least once.
        max_merges: the most merges to learn.

    Raises:
        ValueError: the corpus holds no text.
    """
    merges = _learn_merges(corpus, max_merges)
    if not merges:
        raise ValueError("The tokenizer cannot be trained on captions without words: give it some text.")
    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(letter + WORD_END for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, START, END]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def is_known(tokenizer: CLIPTokenizer, word: str) -> bool:
    """Whether every part of a word ("teddy bear", "t-shirt") is one token of its own, so learned as a whole."""
    tokens = tokenizer.tokenize(word)
    return bool(tokens) and all(token.endswith(WORD_END) for token in tokens)


def _learn_merges(corpus: Iterable[str], max_merges: int) -> list[tuple[str, str]]:
    """Merges in the order in which they apply, learned with CLIP's own normalisation and word splitting."""
    clip = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence([clip.pre_tokenizer])
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(ByteLevel.alphabet()) + max_merges,
        min_frequency=1,
        initial_alphabet=ByteLevel.alphabet(),
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(_lines(corpus), trainer)
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def _lines(corpus: Iterable[str]) -> Iterator[str]:
    return (line for line in corpus if line.strip())

"""What a model trained on a closed world knows, so that a word it never saw is said, and not drawn in silence.

Any model folder may have a knows.json: kind -> phrases, among them "words", the subjects that it draws.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

KNOWS = "knows.json"
WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
# What holds sentences together and shows nothing.
GLUE = frozenset(
    {"a", "an", "the", "and", "or", "of", "with", "to", "by", "is", "are", "it", "its", "his", "her", "my", "your"}
    | {"our", "their", "this", "that", "these", "those", "there", "some", "one", "two", "next", "beside", "near"}
    | {"from", "for", "as", "both", "each", "other", "another", "photo", "picture", "image", "drawing"}
)

Knowledge = Mapping[str, list[str]]


def read_knowledge(folder: str | Path) -> dict[str, list[str]]:
    """The knows.json of a model folder; empty where there is none: such a model reads any text.

    Raises:
        ValueError: it is damaged.
    """
    path = Path(folder) / KNOWS
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict) or not all(
        isinstance(phrases, list) and all(isinstance(phrase, str) for phrase in phrases) for phrases in record.values()
    ):
        raise ValueError(f"{path} is damaged: it must hold lists of phrases by kind.")
    return record


def unknown_words(prompt: str, knowledge: Knowledge) -> list[str]:
    """The words of a prompt, in their order, that stand in none of the known phrases, nor do without a plural's s.

    Empty where nothing is known of what the model knows.
    """
    if not knowledge:
        return []
    known = {word for phrases in knowledge.values() for phrase in phrases for word in _words(phrase)} | GLUE
    return [word for word in dict.fromkeys(_words(prompt)) if not known & {word, *_singulars(word)}]


def unknown_sentence(prompt: str, knowledge: Knowledge) -> str | None:
    """One sentence where a prompt has words that a model does not know: these, and the subjects it does know."""
    unknown = unknown_words(prompt, knowledge)
    if not unknown:
        return None
    named = ", ".join(f'"{word}"' for word in unknown[:8])
    subjects = ", ".join(knowledge.get("words", [])) or "other words"
    return f"This model does not know {named}, and may draw nothing of it; it knows {subjects}."


def warnings_of(prompt: str, knowledge: Knowledge) -> tuple[str, ...]:
    """What should be known about a prompt that can be drawn nevertheless."""
    sentence = unknown_sentence(prompt, knowledge)
    return () if sentence is None else (sentence,)


def _words(text: str) -> list[str]:
    return [match[0] for match in WORD.finditer(unicodedata.normalize("NFC", text).lower())]


def _singulars(word: str) -> list[str]:
    """What a word may be the plural or the possessive of."""
    stem = re.sub(r"['\u2019]s$", "", word)
    return [stem, stem.removesuffix("s"), stem.removesuffix("es")]

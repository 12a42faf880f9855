"""Characters: subjects with a name of their own, used in a prompt as @name. Needs no torch.

A character is a word ("dog"), one or more references of the whole subject, references of its face if it has one, and
how much either acts. In a prompt `@rex` reads as the word, so that the prompt needs no description of the subject; the
character is that place of the prompt alone, and another dog stays another dog. An @ before a letter or digit is always
a mention, whatever the script: one that names no character is refused, since no model would draw it as meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from realcustom.checks import check_fields, finite, text
from realcustom.encoders.target_word import Span, find_phrase, find_target, occurrence, target_key, target_spans
from realcustom.types import Subject

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,38}[a-z0-9])?")
MENTION = re.compile(r"(?<!\w)@(\w(?:[\w\u0300-\u036f-]*[\w\u0300-\u036f])?)")
MAX_REFERENCES = 8
MAX_DESCRIPTION = 400


@dataclass(frozen=True, kw_only=True)
class Character:
    """A named subject.

    name: 1 to 40 lower-case letters, digits, - and _; unique.
    word: the word or phrase of the prompt that it reads as, such as "dog".
    images: references of the whole subject, at least one; paths, ids, or whatever a `Subject` takes.
    faces: references that show its face alone; may be empty.
    description: what it is and what is particular about it, at most 400 characters; used only on request.
    strength: how much the whole subject acts, in [0, 2].
    face_strength: how much the face acts, in [0, 2]; without `faces` it has no effect.
    """

    name: str
    word: str
    images: tuple[Any, ...]
    faces: tuple[Any, ...] = ()
    description: str = ""
    strength: float = 1.0
    face_strength: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", checked_name(self.name))
        word = " ".join(text("The word of a character", self.word).split())
        if not word or "@" in word:
            raise ValueError('A character needs the word it reads as in a prompt, such as "dog".')
        object.__setattr__(self, "word", word)
        for name in ("images", "faces"):
            value = getattr(self, name)
            given = tuple(value) if isinstance(value, (list, tuple)) else (value,)
            object.__setattr__(self, name, tuple(image for image in given if image is not None))
        if not self.images:
            raise ValueError("A character needs at least one reference image.")
        if len(self.images) + len(self.faces) > MAX_REFERENCES:
            raise ValueError(f"A character has at most {MAX_REFERENCES} reference images, faces included.")
        if len(text("The description of a character", self.description)) > MAX_DESCRIPTION:
            raise ValueError(f"The description of a character has at most {MAX_DESCRIPTION} characters.")
        object.__setattr__(self, "description", " ".join(self.description.split()))
        for name, what in (("strength", "The strength"), ("face_strength", "The face strength")):
            object.__setattr__(self, name, finite(f"{what} of a character", getattr(self, name), 0.0, 2.0))

    def subject(self) -> Subject:
        """The character as a subject: the larger strength masks it, the two weigh its references among each other."""
        strength = max(self.strength, self.face_strength) if self.faces else self.strength
        if not self.faces or strength == 0:
            return Subject(self.images, strength=strength)
        shares = [self.strength / strength] * len(self.images) + [self.face_strength / strength] * len(self.faces)
        return Subject(self.images + self.faces, strength=strength, weights=tuple(shares))

    def to_dict(self) -> dict[str, Any]:
        """JSON form, where the images are paths or ids."""
        record = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**record, "images": list(self.images), "faces": list(self.faces)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Character:
        """A character from its JSON form; unknown or missing fields are ValueErrors that name them."""
        check_fields(record, cls, "a character")
        for name in ("name", "word", "images"):
            if name not in record:
                raise ValueError(f"A character needs the field '{name}'.")
        return cls(**record)


def checked_name(name: Any) -> str:
    """A character's name in the form it is stored in: lower case, without a leading @; ValueError otherwise."""
    cleaned = text("The name of a character", name).strip().removeprefix("@").lower()
    if not NAME.fullmatch(cleaned):
        raise ValueError(
            "The name of a character has 1 to 40 letters, digits, - or _ and begins and ends with a letter or digit."
        )
    return cleaned


def mentions(prompt: str) -> list[str]:
    """Names mentioned as @name, lower case, in the order of their first mention."""
    return list(dict.fromkeys(name.lower() for name in MENTION.findall(prompt)))


def read_mentions(
    prompt: str,
    subjects: Mapping[str, Any],
    find: Callable[[str], Character | None],
    describe: bool = False,
) -> tuple[str, dict[str, Any]]:
    """A prompt and its subjects with every @name read as its character.

    Args:
        prompt: may mention characters.
        subjects: the subjects given besides; their keys count places in the prompt as typed.
        find: a character by name; None when there is none.
        describe: append the descriptions of the characters to the prompt.

    Returns:
        the prompt with words in the place of names, and all subjects, keyed by their places in it.

    Raises:
        ValueError: there is no such character, or a subject's word does not stand in the prompt beside the mentions.
    """
    if not isinstance(prompt, str) or not mentions(prompt):
        return prompt, dict(subjects)
    cast = {name: _cast(name, find) for name in mentions(prompt)}
    plain, places, moved = _plain(prompt, cast)
    descriptions = {name: character.description for name, character in cast.items() if character.description}
    for name, description in descriptions.items() if describe else ():
        plain += f", {description}"
        places[name].append((len(plain) - len(description), len(plain)))
    together: dict[str, Any] = {}
    entries = [(_moved_key(prompt, plain, key, moved), subject) for key, subject in subjects.items()]
    entries += [(target_key(plain, cast[name].word, places[name]), cast[name].subject()) for name in cast]
    for key, subject in entries:
        if key in together:
            raise ValueError(f'Two subjects are "{key}" of "{plain}": give each a place of its own.')
        together[key] = subject
    return plain, together


def check_mentions(prompt: str) -> None:
    """Refuse a prompt that still mentions somebody: a mention is no text that a model could draw.

    Raises:
        ValueError: names the first mention.
    """
    match = MENTION.search(prompt)
    if match is not None:
        raise ValueError(f"No character was read for {match[0]}: name one that is kept, or write the word itself.")


def _cast(name: str, find: Callable[[str], Character | None]) -> Character:
    character = find(name)
    if character is None:
        raise ValueError(f"There is no character @{name}.")
    return character


def _plain(
    prompt: str, cast: Mapping[str, Character]
) -> tuple[str, dict[str, list[Span]], Callable[[Span], Span | None]]:
    """The prompt with words in the place of names, where each name's words stand in it, and where a span of the typed
    prompt has moved (None for one within a mention)."""
    places: dict[str, list[Span]] = {name: [] for name in cast}
    plain, at, shifts = "", 0, []
    for match in MENTION.finditer(prompt):
        name = match[1].lower()
        plain += prompt[at : match.start()]
        places[name].append((len(plain), len(plain) + len(cast[name].word)))
        plain, at = plain + cast[name].word, match.end()
        shifts.append((match.span(), len(plain) - at))

    def moved(span: Span) -> Span | None:
        if any(start < span[1] and span[0] < end for (start, end), _ in shifts):
            return None
        shift = max(((end, shift) for (_, end), shift in shifts if end <= span[0]), default=(0, 0))[1]
        return span[0] + shift, span[1] + shift

    return plain + prompt[at:], places, moved


def _moved_key(prompt: str, plain: str, key: str, moved: Callable[[Span], Span | None]) -> str:
    """The key in the plain prompt of the places that it means in the typed one."""
    spans = [place for span in target_spans(prompt, key) if (place := moved(span)) is not None]
    if spans and find_target(plain, key) == spans:
        return key
    phrase = key if find_phrase(prompt, key) else occurrence(key)[0]
    return target_key(plain, phrase, spans)


def read_record(
    record: Mapping[str, Any], find: Callable[[str], Character | None], describe: bool = False
) -> dict[str, Any]:
    """`read_mentions` on the JSON form of a request, unchanged where it mentions nobody."""
    subjects = record.get("subjects") or {}
    if not isinstance(subjects, Mapping) or not isinstance(record.get("prompt"), str):
        return dict(record)
    prompt, together = read_mentions(record["prompt"], subjects, find, describe)
    return {**record, "prompt": prompt, "subjects": together}


def highlighted(prompt: str, words: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """The prompt in pieces, each with the label of the subject it stands for or None.

    Args:
        prompt: as typed, mentions included.
        words: what to mark -> its label; a word or phrase, or "@name".
    """
    spans = []
    for word, label in words.items():
        if word.startswith("@"):
            found = [match.span() for match in MENTION.finditer(prompt) if match[1].lower() == word[1:].lower()]
        else:
            found = find_target(prompt, word) if word.strip() else []
        spans += [(start, end, label) for start, end in found]
    pieces, at = [], 0
    for start, end, label in sorted(spans):
        if start < at:
            continue
        pieces += [(prompt[at:start], None)] if start > at else []
        pieces.append((prompt[start:end], label))
        at = end
    return pieces + ([(prompt[at:], None)] if at < len(prompt) else [])

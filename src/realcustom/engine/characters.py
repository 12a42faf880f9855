"""Characters: subjects with a name of their own, used in a prompt as @name. Needs no torch.

A character is a word ("dog"), one or more references of the whole subject, references of its face if it has one, and
how much either acts. In a prompt `@rex` reads as the word, so that the prompt needs no description of the subject.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from realcustom.encoders.target_word import find_phrase
from realcustom.types import Subject, finite, text

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,38}[a-z0-9])?")
MENTION = re.compile(r"(?<![\w@.])@([A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)")
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
        if not isinstance(record, Mapping):
            raise ValueError("A character must be a record of fields.")
        known = {entry.name for entry in fields(cls)}
        for name in record:
            if name not in known:
                raise ValueError(f"'{name}' is no field of a character; it has {', '.join(sorted(known))}.")
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
        subjects: the subjects given besides.
        find: a character by name; None when there is none.
        describe: append the descriptions of the characters to the prompt.

    Returns:
        the prompt with words in the place of names, and all subjects.

    Raises:
        ValueError: there is no such character, or its word is another subject's too.
    """
    if not isinstance(prompt, str):
        return prompt, dict(subjects)
    together, owners, descriptions = dict(subjects), {word.lower(): word for word in subjects}, []
    words = {}
    for name in mentions(prompt):
        character = find(name)
        if character is None:
            raise ValueError(f"There is no character @{name}.")
        key = character.word.lower()
        if key in owners:
            raise ValueError(
                f'@{name} reads as "{character.word}", and so does {owners[key]}: give one of them another word, '
                f'such as "brown {character.word}".'
            )
        owners[key] = f"@{name}"
        words[name] = character.word
        together[character.word] = character.subject()
        descriptions.append(character.description)
    plain = MENTION.sub(lambda match: words[match[1].lower()], prompt)
    if describe:
        plain = ", ".join([plain, *filter(None, descriptions)])
    return plain, together


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
            found = find_phrase(prompt, word) if word.strip() else []
        spans += [(start, end, label) for start, end in found]
    pieces, at = [], 0
    for start, end, label in sorted(spans):
        if start < at:
            continue
        pieces += [(prompt[at:start], None)] if start > at else []
        pieces.append((prompt[start:end], label))
        at = end
    return pieces + ([(prompt[at:], None)] if at < len(prompt) else [])

"""Finds the noun phrases of an English caption that can serve as target words, by rules and a small lexicon.

A phrase opens at a determiner, number or possessive and runs to the first word that cannot continue it; its target is
the noun at its end without adjectives ("a small red dog on the beach" -> "dog"). Nouns of the lexicon are found
without a determiner too, and compounds of the lexicon ("teddy bear") stay whole.
"""

import re
from dataclasses import dataclass

from realcustom.data.vocabulary import ALL_WORDS, COLOURS


@dataclass(frozen=True, kw_only=True)
class TargetWord:
    """text as it stands in the caption, caption[start:end]."""

    text: str
    start: int
    end: int


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPENERS = _words(
    "a an the this that these those his her its their my your our some one two three four five six several many each "
    "every another"
)
CLOSERS = _words(
    "in on at by with without of from to into onto over under above below behind beside besides near next between "
    "among through across against around along inside outside up down off for as like about during while when where "
    "who which underwater outdoors indoors together away and or but is are was were be being been has have had do does "
    "did it he she they there very not"
)
ADJECTIVES = _words(
    "small big large little tiny huge tall short long old young new fresh cute happy sad beautiful pretty colorful "
    "bright dark light fluffy furry wooden metal plastic golden silver shiny wild tame open closed empty full "
    "clean dirty hot cold warm soft hard round square striped spotted plain close single double different same other "
    "modern vintage antique stuffed cartoon"
) | frozenset(COLOURS)
# Heads of phrases that name the picture, a place in it, or its setting, and no thing that could be customised.
NOT_THINGS = _words(
    "photo photograph picture image painting drawing sketch illustration view shot close-up closeup scene background "
    "foreground front back top bottom side middle center centre edge corner group couple pair bunch lot number set row "
    "piece kind type style way day night morning evening sunset sunrise time beach forest snow desert street city "
    "space room meadow ocean sea mountain mountains sky water grass field road ground floor wall air"
)
THINGS = frozenset(ALL_WORDS) | _words(
    "person man woman child boy girl baby bear giraffe boat bus bench bottle cup fork knife spoon bowl table couch "
    "sofa bed keyboard phone microwave oven toaster sink refrigerator skateboard surfboard tie frisbee snowboard "
    "broccoli cake plant candle can sneaker toy doll plushie lamp basket bag hat statue figurine vehicle animal "
    "building earring string clothing pudding"
)
_COMPOUNDS = tuple(sorted((thing for thing in THINGS if " " in thing), key=len, reverse=True))
_TOKEN = re.compile(r"[A-Za-z][A-Za-z'-]*|[^\sA-Za-z]")


def singular(word: str) -> str:
    """The likely singular of a regular English plural, lower case."""
    word = word.lower()
    for ending, replacement in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + replacement
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us")) and len(word) > 3 else word


def find_target_words(caption: str, limit: int | None = None) -> tuple[TargetWord, ...]:
    """Target words in the order of the caption, each noun once; limit keeps the first few."""
    tokens = [(match.group(), match.start(), match.end()) for match in _TOKEN.finditer(caption)]
    taken = _compounds(caption)
    covered = {position for word in taken for position in range(word.start, word.end)}
    phrase: list[tuple[str, int, int]] = []
    inside = False
    for token in [*tokens, (".", len(caption), len(caption))]:
        text = token[0].lower()
        ends = not text[0].isalpha() or text in CLOSERS or text in OPENERS or token[1] in covered or _is_verb(text)
        if ends:
            taken += _head(phrase, inside)
            phrase, inside = [], text in OPENERS
        else:
            phrase.append(token)
    unique: dict[str, TargetWord] = {}
    for word in sorted(taken, key=lambda word: word.start):
        unique.setdefault(singular(word.text), word)
    return tuple(unique.values())[:limit]


def _compounds(caption: str) -> list[TargetWord]:
    found: list[TargetWord] = []
    lowered = caption.lower()
    for compound in _COMPOUNDS:
        for match in re.finditer(rf"\b{re.escape(compound)}(?:e?s)?\b", lowered):
            if not any(match.start() < word.end and word.start < match.end() for word in found):
                found.append(
                    TargetWord(text=caption[match.start() : match.end()], start=match.start(), end=match.end())
                )
    return found


def _is_verb(word: str) -> bool:
    """Participles after a noun ("a dog wearing a hat") close the phrase."""
    return word.endswith("ing") and word not in THINGS and len(word) > 5


def _head(phrase: list[tuple[str, int, int]], after_opener: bool) -> list[TargetWord]:
    """The noun at the phrase's end; without a determiner only a noun of the lexicon counts."""
    if phrase and phrase[-1][0].lower() in NOT_THINGS:
        return []
    known = [token for token in phrase if singular(token[0]) in THINGS or token[0].lower() in THINGS]
    if known:
        chosen = known[-1]
    elif after_opener and phrase:
        chosen = phrase[-1]
    else:
        return []
    text = chosen[0].lower()
    if text in ADJECTIVES and not (text in THINGS and chosen == phrase[-1]):
        return []
    if text in NOT_THINGS or singular(text) in NOT_THINGS or len(text) < 3:
        return []
    return [TargetWord(text=chosen[0], start=chosen[1], end=chosen[2])]

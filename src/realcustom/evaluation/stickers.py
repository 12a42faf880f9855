"""The sticker benchmark: identities never trained on, in contexts whose truth is known.

Each task comes from a composed record: its caption is the prompt, its references are the subjects, its picture is the
real composite that the generated image stands beside. Needs no torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from realcustom.data.records import Record
from realcustom.data.vocabulary import WEARERS
from realcustom.data.world import StickerWorld, WorldSettings

from .benchmark import Benchmark, Task, TaskSubject
from .judge_report import world_like

OTHERS = 9  # references of other identities of the same word that the own one is told from
ATTEMPTS = 24  # records drawn for a word before another word is tried
NOTHING = {"two_subjects": 0.0, "companion": 0.0, "accessory": 0.0, "colour_word": 0.0, "style": 0.0}

KINDS: dict[str, dict] = {
    "scene": NOTHING,
    "accessory": {**NOTHING, "accessory": 1.0},
    "colour": {**NOTHING, "colour_word": 1.0, "repaint": 1.0},
    "style": {**NOTHING, "style": 1.0},
    "companion": {**NOTHING, "companion": 1.0},
    "pair": {**NOTHING, "two_subjects": 1.0},
}
"""What the prompt asks for beside a scene. "colour" asks for another colour than the reference has."""

ORDER = ("scene", "accessory", "scene", "colour", "companion", "scene", "style", "pair")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A task and its truth.

    record: the composed picture with its attributes and masks. others: uint8 (OTHERS, H, W, 3), references of other
    identities of the first subject's word.
    """

    kind: str
    task: Task
    record: Record
    others: np.ndarray


def samples(world: StickerWorld, count: int, seed: int = 0, order: Sequence[str] = ORDER) -> list[Sample]:
    """The first `count` samples; every word comes equally often, the kinds in the proportions of `order`.

    Args:
        world: with held-out identities; its other settings but words and sizes are replaced.
        seed: of the images' noise.
    """
    rng = random.Random(f"sticker-benchmark-{world.settings.seed}")
    deck: list[str] = []
    made = []
    for number in range(count):
        kind = order[number % len(order)]
        deck = deck or rng.sample(world.settings.words, len(world.settings.words))
        fitting = [word for word in deck if kind != "accessory" or word in WEARERS]
        word = fitting[-1] if fitting else next(w for w in world.settings.words if w in WEARERS)
        if word in deck:
            deck.remove(word)
        made.append(_sample(world, number, kind, word, seed))
    return made


def _sample(world: StickerWorld, number: int, kind: str, word: str, seed: int) -> Sample:
    record = _record(world, number, kind, word)
    facts = {name: record.attributes[name] for name in ("scene", "style", "accessory", "companion", "colours")}
    subjects = tuple(
        TaskSubject(word=name, images=(Image.fromarray(picture),), references=(Image.fromarray(picture),))
        for name, picture in zip(record.words, record.references, strict=True)
    )
    identities = record.attributes["reference_identities"]
    task = Task(
        key=f"{number:05d}-{kind}",
        prompt=record.caption,
        subjects=subjects,
        seed=seed + number,
        group=identities[0],
        facts={"kind": kind, "identities": identities, **facts},
    )
    others = _others(world, record.words[0], identities[0], number)
    return Sample(kind=kind, task=task, record=record, others=others)


def _record(world: StickerWorld, number: int, kind: str, word: str) -> Record:
    """A record of the kind whose first subject is the word, with every subject to be seen.

    Few individuals have a second held-out colour; a colour edit may therefore move on to another word.
    """
    rest = [name for name in world.settings.words if name != word]
    random.Random(f"rest-{number}").shuffle(rest)
    for first, second in zip([word, *rest], [*rest, word], strict=True):
        words = (first, second) if kind in ("companion", "pair") else (first,)
        made = world_like(world, replace(world.settings, words=words, **KINDS[kind]))
        for attempt in range(ATTEMPTS):
            record = made.record(number * ATTEMPTS + attempt)
            repainted = record.attributes["identities"] != record.attributes["reference_identities"]
            if record.words[0] == first and (kind != "colour" or repainted) and record.masks.any(axis=(1, 2)).all():
                return record
    raise ValueError(f"No picture of the kind {kind} was found among the words {', '.join(world.settings.words)}.")


def _others(world: StickerWorld, word: str, own: str, number: int) -> np.ndarray:
    rng = random.Random(f"others-{world.settings.seed}-{number}")
    pictures, names = [], {own}
    while len(pictures) < OTHERS:
        identity = world.identity(rng, word)
        if identity.id not in names:
            names.add(identity.id)
            pictures.append(world.reference(identity, rng))
    return np.stack(pictures)


def benchmark(made: Sequence[Sample], settings: WorldSettings) -> Benchmark:
    """The samples' tasks with what defines them."""
    protocol = {
        "world_seed": settings.seed,
        "split": settings.split,
        "words": len(settings.words),
        "images": len(made),
        "others": OTHERS,
    }
    return Benchmark(name="stickers", tasks=tuple(sample.task for sample in made), protocol=protocol)

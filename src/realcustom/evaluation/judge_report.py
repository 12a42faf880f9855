"""Validating the sticker judge itself on real (composed) pictures of held-out identities."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from PIL import Image

from realcustom.data.records import Record
from realcustom.data.world import StickerWorld, WorldSettings

from .judge import Judge
from .metrics import Estimate, bootstrap, mask_iou, top_one

HELD_OUT = WorldSettings(split="held-out", seed=90_001)  # other pictures than any training draws, too


def validate_judge(judge: Judge, world: StickerWorld, count: int = 400, gallery: int = 100) -> dict[str, Estimate]:
    """Accuracies on composed pictures, found by the judge's own segmentation as on generated ones.

    Args:
        world: with identities the judge has not seen.
        count: pictures for each kind of phrase.
        gallery: size of the galleries of the identity retrieval (1 right answer, the others different identities).

    Returns:
        name of the figure -> estimate in [0, 1].
    """
    known = set(judge.vocabulary("words"))
    settings = replace(world.settings, words=tuple(word for word in world.settings.words if word in known))
    kinds: Mapping[str, Mapping] = {
        "scene": {},
        "style": {"style": 0.9},
        "accessory": {"accessory": 0.9},
        "colour": {"colour_word": 1.0, "two_subjects": 0.0},
        "companion": {"companion": 1.0, "two_subjects": 0.0},
    }
    report = identity_retrieval(judge, world_like(world, settings), count, gallery)
    answers = []
    for kind, changes in kinds.items():
        records = [world_like(world, replace(settings, **changes)).record(index) for index in range(count)]
        records = [record for record in records if record.attributes.get(kind) or kind in ("scene", "colour")]
        if kind == "colour":
            records = [record for record in records if record.attributes["style"] is None]
        sights = judge.look([Image.fromarray(record.image) for record in records])
        right = [shows(sight, record, kind) for sight, record in zip(sights, records, strict=True)]
        report[kind] = bootstrap(right)
        answers += right
    report["prompt attributes, these five together"] = bootstrap(answers)
    absent = [world_like(world, replace(settings, accessory=0.0, style=0.0)).record(index) for index in range(count)]
    sights = judge.look([Image.fromarray(record.image) for record in absent])
    report["no accessory where there is none"] = bootstrap(
        [sight.accessory(record.words[0]) is None for sight, record in zip(sights, absent, strict=True)]
    )
    return report


def shows(sight, record: Record, kind: str) -> bool:
    """Whether the judge sees what the record's attributes say of this kind."""
    facts = record.attributes
    if kind == "companion":
        return facts["companion"] in sight.words
    if kind == "accessory":
        return sight.accessory(record.words[0]) == facts[kind]
    if kind == "colour":
        crop = sight.crop(record.words[0])
        if crop is None:
            return False
        best = sight.judge.identify([crop])[1][0].argmax()
        return sight.judge.vocabulary("colours")[int(best)] == facts["colours"][0]
    return getattr(sight, kind) == facts[kind]


def identity_retrieval(judge: Judge, world: StickerWorld, count: int, gallery: int) -> dict[str, Estimate]:
    """Top-1 retrieval of the reference from a picture of the same individual, and the segmentation's IoU.

    Galleries are disjoint sets of `gallery` pairs of different identities; one of mixed words, and one of 10 identities
    of one word, which is what the identity figure of generated pictures is measured on.
    """
    plain = world_like(world, replace(world.settings, style=0.0, two_subjects=0.0))
    pairs, overlaps, index = [], [], 0
    names: set[str] = set()
    while len(pairs) < max(gallery, count // gallery * gallery):
        record = plain.record(index)
        index += 1
        name = record.attributes["identities"][0]
        if name in names:
            continue
        names.add(name)
        sight, other = judge.look([Image.fromarray(record.image), Image.fromarray(record.references[0])])
        mask = sight.mask(record.words[0])
        overlaps.append(iou_or_zero(mask, record.masks[0]))
        pairs.append((sight.crop(record.words[0]), other.crop(record.words[0])))
    mixed = [retrieved(judge, pairs[start : start + gallery]) for start in range(0, len(pairs), gallery)]
    alike = [retrieved(judge, same_word_pairs(judge, plain, number)) for number in range(max(4, count // 20))]
    return {
        f"identity, top-1 of {gallery}": bootstrap(np.concatenate(mixed)),
        "identity, top-1 of 10 of the same word": bootstrap(np.concatenate(alike)),
        "subject segmentation, mean IoU": bootstrap(overlaps),
    }


def same_word_pairs(judge: Judge, world: StickerWorld, number: int, count: int = 10) -> list[tuple]:
    """(crop, crop) of two views each of `count` identities of one word."""
    rng = random.Random(f"same-word-{number}")
    word = rng.choice(world.settings.words)
    crops, names = [], set()
    while len(crops) < count:
        identity = world.identity(rng, word)
        if identity.id in names:
            continue
        names.add(identity.id)
        views = judge.look([Image.fromarray(world.reference(identity, rng)) for _ in range(2)])
        crops.append(tuple(view.crop(word) for view in views))
    return crops


def retrieved(judge: Judge, pairs: list[tuple]) -> np.ndarray:
    """Whether each pair's first crop finds its second one among all second ones; a subject not seen finds nothing."""
    seen = [pair for pair in pairs if pair[0] is not None and pair[1] is not None]
    queries, _ = judge.identify([first for first, _ in seen])
    gallery, _ = judge.identify([second for _, second in seen])
    right = np.zeros(len(pairs), dtype=bool)
    if seen:
        right[: len(seen)] = top_one(queries, gallery)
    return right


def iou_or_zero(found: np.ndarray | None, truth: np.ndarray) -> float:
    return 0.0 if found is None else mask_iou(found, truth)


def world_like(world: StickerWorld, settings: WorldSettings) -> StickerWorld:
    """The same cut-outs and backgrounds under other settings of what is drawn."""
    other = copy.copy(world)
    other.settings = settings
    return other

"""What the judge finds in the images of the sticker benchmark.

Figures of an image, each 1 or 0 unless said otherwise, nan where the prompt does not ask for it:
    identity_colour, identity_judge: nearer to the own reference than to 9 others of the same word, by mean CIELAB
        inside the subject and by the judge's embedding; not for styles and colour edits, which change what is compared.
    similarity: cosine of the judge's embeddings of subject and reference, -1..1; mean over the subjects.
    scene, style, accessory, colour, companion, both_subjects: seen as the prompt says. word: every subject's word seen.
    text: mean over those of them that the prompt asks for, 0..1: controllability.
    copied: the subject stands in the reference's place, pose and size (IoU of both masks >= 0.7).
    mask_agreement: IoU of the last guidance mask with where the judge sees the subject, 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .judge import Judge, Sight
from .metrics import Estimate, bootstrap, kid_estimate, mask_iou, mean_lab, nearest, paired_difference, top_share
from .stickers import Sample

Values = dict[str, float]
NAN = float("nan")
COPIED = 0.7
ASKED = ("scene", "style", "accessory", "colour", "companion", "both_subjects")

NAMES = {
    "identity_colour": "own reference nearest of 10, mean CIELAB",
    "identity_judge": "own reference nearest of 10, judge",
    "similarity": "similarity to the reference (cosine, judge)",
    "scene": "scene recognised",
    "accessory": "accessory present",
    "colour": "new colour taken",
    "style": "style recognised",
    "companion": "companion present",
    "both_subjects": "both subjects present",
    "word": "subject's word recognised",
    "text": "text controllability (mean of what is asked)",
    "copied": "copy-paste (pose and size of the reference)",
    "mask_agreement": "guidance mask on the subject (IoU)",
}


class References:
    """Masks, embeddings and mean colours of the samples' references and their 9 others, looked at once."""

    def __init__(self, judge: Judge, made: Sequence[Sample]):
        self.judge = judge
        self.own = [[self._seen(np.asarray(s.images[0]), s.word) for s in sample.task.subjects] for sample in made]
        self.others = [[self._seen(other, sample.record.words[0]) for other in sample.others] for sample in made]

    def _seen(self, picture: np.ndarray, word: str) -> tuple:
        """(mask or None, embedding (d,), mean CIELAB (3,)); nan where nothing is seen."""
        return seen(self.judge, self.judge.look([Image.fromarray(picture)])[0], word, ())


def seen(judge: Judge, sight: Sight, word: str, others: Sequence[str]) -> tuple:
    """(mask bool (H, W) or None, embedding (d,), mean CIELAB (3,)) of a word's subject."""
    mask = sight.mask(word, others)
    if mask is None:
        return None, np.full(judge.network.config.identity_dim, np.nan), np.full(3, np.nan)
    embeddings, _ = judge.identify([sight.crop(word, others)])
    return mask, embeddings[0], mean_lab(sight.picture, mask)


def measure_stickers(
    judge: Judge,
    made: Sequence[Sample],
    images: Sequence[Image.Image],
    references: References,
    masks: Sequence[Sequence[np.ndarray]] | None = None,
) -> list[Values]:
    """Values of every image; masks: the guidance masks of the last step, (h, w) a subject."""
    rows = []
    for place, (sample, sight) in enumerate(zip(made, judge.look(images), strict=True)):
        words = [subject.word for subject in sample.task.subjects]
        found = [seen(judge, sight, word, [w for w in words if w != word]) for word in words]
        own, others = references.own[place], references.others[place]
        row = text_values(judge, sample, sight, words)
        row |= identity_values(sample, found, own, others)
        copied = [mask_iou(mask, real[0]) for (mask, *_), real in zip(found, own, strict=True) if _both(mask, real[0])]
        row["copied"] = float(np.mean(np.array(copied) >= COPIED)) if copied else NAN
        if masks is not None and masks[place]:
            row["mask_agreement"] = agreement(masks[place], [mask for mask, *_ in found])
        rows.append(row)
    return rows


def identity_values(sample: Sample, found: list[tuple], own: list[tuple], others: list[tuple]) -> Values:
    """identity_colour, identity_judge and similarity; a subject that is not seen counts as not identified."""
    if sample.kind in ("style", "colour"):
        return {"identity_colour": NAN, "identity_judge": NAN, "similarity": NAN}
    _, embedding, colour = found[0]
    rivals = [own[0], *others]
    by_colour = np.array([np.linalg.norm(colour - rival[2]) for rival in rivals])
    by_judge = np.array([-float(embedding @ rival[1]) for rival in rivals])
    cosines = [float(mine[1] @ real[1]) for mine, real in zip(found, own, strict=True)]
    return {
        "identity_colour": float(nearest(by_colour)),
        "identity_judge": float(nearest(by_judge)),
        "similarity": float(np.mean(np.nan_to_num(cosines, nan=0.0))),
    }


def text_values(judge: Judge, sample: Sample, sight: Sight, words: Sequence[str]) -> Values:
    """Whether the picture shows what the prompt says."""
    facts = sample.task.facts
    row = dict.fromkeys(ASKED, NAN)
    row["word"] = float(all(word in sight.words for word in words))
    if facts["style"] is None:
        row["scene"] = float(sight.scene == facts["scene"])
    else:
        row["style"] = float(sight.style == facts["style"])
    if facts["accessory"] is not None:
        row["accessory"] = float(sight.accessory(words[0]) == facts["accessory"])
    if facts["companion"] is not None:
        row["companion"] = float(facts["companion"] in sight.words)
    if sample.kind == "colour":
        crop = sight.crop(words[0])
        best = None if crop is None else judge.vocabulary("colours")[int(judge.identify([crop])[1][0].argmax())]
        row["colour"] = float(best == facts["colours"][0])
    if len(words) > 1:
        row["both_subjects"] = row["word"]
    row["text"] = float(np.nanmean([row[name] for name in ASKED]))
    return row


def agreement(masks: Sequence[np.ndarray], found: Sequence[np.ndarray | None]) -> float:
    """Mean IoU of guidance masks (h, w), enlarged and cut at the seen subject's area, with the seen subjects (H, W)."""
    values = []
    for mask, subject in zip(masks, found, strict=True):
        if subject is None:
            continue
        size = subject.shape[::-1]
        large = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        values.append(mask_iou(top_share(large, subject.mean()), subject))
    return float(np.mean(values)) if values else NAN


def _both(first, second) -> bool:
    return first is not None and second is not None


def summary(rows: Sequence[Values], groups: Sequence[str]) -> dict[str, Estimate]:
    """Mean and interval of every figure that some image has."""
    had = [name for name in NAMES if any(name in row for row in rows)]
    estimates = {name: bootstrap([row.get(name, NAN) for row in rows], groups) for name in had}
    return {name: value for name, value in estimates.items() if value.count}


def difference(first: Sequence[Values], second: Sequence[Values], name: str, groups: Sequence[str]) -> Estimate:
    """Mean difference of a figure over the images of two runs of the same tasks."""
    return paired_difference([row.get(name, NAN) for row in first], [row.get(name, NAN) for row in second], groups)


def quality(judge: Judge, images: Sequence[Image.Image], made: Sequence[Sample]) -> Estimate:
    """KID between generated images and the real composites of the same prompts, on the judge's features."""
    real = [Image.fromarray(sample.record.image) for sample in made]
    return kid_estimate(judge.features(images), judge.features(real))

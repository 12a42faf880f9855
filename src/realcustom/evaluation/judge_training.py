"""Training the sticker judge: composed pictures with their truth, and the loss of both towers.

Shapes: B records of a batch, (h, w) cells of the segmentation, C side of a crop.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from realcustom.data.identity import Identity
from realcustom.data.records import Record
from realcustom.data.vocabulary import ACCESSORY_PHRASES, COLOURS, DEFAULT_WORDS, SCENE_PHRASES, STYLES
from realcustom.data.world import StickerWorld, WorldSettings

from .judge_network import StickerJudge
from .metrics import mask_iou
from .views import blurred, coarse, found, roughened, subject_crop, surroundings, view

# Companions are further subjects here: they look the same, and a subject's true mask is known.
JUDGE_WORLD = WorldSettings(
    companion=0.0, two_subjects=0.35, pair_area=(0.07, 0.22), accessory=0.5, style=0.2, colour_word=0.35
)
VOCABULARY = {
    "scene": tuple(SCENE_PHRASES),
    "style": (None, *STYLES),
    "accessory": (None, *ACCESSORY_PHRASES),
    "colour": tuple(COLOURS),
}
FOUND = 0.5  # IoU with the truth from which on a crop along the judge's own outline shows the subject
IGNORED = -100  # cross_entropy's label of rows that do not count


class JudgeRecords:
    """An endless source of batches with truth.

    A third of the whole pictures are views of an identity alone, as references are.
    """

    size = None

    def __init__(self, folder: str | Path, settings: WorldSettings = JUDGE_WORLD):
        """folder: cut-outs."""
        self.folder = folder
        self.settings = settings
        self._world: StickerWorld | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_world": None}

    @property
    def world(self) -> StickerWorld:
        """Opened where it is used first: the pictures it keeps do not travel to other processes."""
        if self._world is None:
            self._world = StickerWorld(self.folder, self.settings)
        return self._world

    def batch(self, indices: np.ndarray) -> Mapping[str, Tensor]:
        """pictures uint8 (B, 3, H, W); crops, others and worn uint8 (B, 4, C, C); int64 labels: words (B, h, w); scene,
        style, accessory, colour, named, own (B,), where named is 1 for rows whose identity shows its own colours, and
        own is the first subject's label in `words` or 0 where the crops are of another picture than `pictures`."""
        rows = [self._sample(self.world, int(index)) for index in indices]
        return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}

    def _sample(self, world: StickerWorld, index: int) -> dict[str, np.ndarray]:
        rng = random.Random(f"judge-sample-{index}")
        record = world.record(index, reconstruct=True)
        identity = identity_of(record)
        alone, alone_mask, alone_scene = view(world, identity, rng)
        picture = blurred(record.image, rng)
        visible = record.masks[0] if record.masks[0].any() else np.ones_like(record.masks[0])
        crops = {"crops": (picture, visible), "others": (blurred(alone, rng), alone_mask)}
        labels = labels_of(record)
        if rng.random() < 0.33:
            picture = crops["others"][0]
            labels |= labels_of_view(identity.word, alone_mask, alone_scene)
        else:
            labels["own"] = np.int64(1 + DEFAULT_WORDS.index(identity.word))
        sample = {name: subject_crop(values, roughened(mask, rng)) for name, (values, mask) in crops.items()}
        sample["worn"] = surroundings(crops["crops"][0], roughened(visible, rng))
        sample = {name: rearrange(values, "h w c -> c h w") for name, values in {"pictures": picture, **sample}.items()}
        return {**sample, **labels}


def identity_of(record: Record) -> Identity:
    """The identity of a record's first subject, rebuilt from its id."""
    cutout, colour, pattern, number = record.attributes["identities"][0].rsplit(":", 3)
    return Identity(word=record.words[0], cutout=cutout, colour=colour, pattern=pattern, number=int(number))


def labels_of(record: Record) -> dict[str, np.ndarray]:
    """Labels of a composed record; see `JudgeRecords.batch`."""
    facts = record.attributes
    return {
        "words": word_map(DEFAULT_WORDS, record.words, record.masks),
        "scene": place("scene", facts["scene"]),
        "style": place("style", facts["style"]),
        "accessory": place("accessory", facts["accessory"]),
        "colour": np.int64(IGNORED) if facts["colours"][0] is None else place("colour", facts["colours"][0]),
        "named": np.int64(facts["style"] is None),
        "own": np.int64(0),
    }


def labels_of_view(word: str, mask: np.ndarray, scene: str | None) -> dict[str, np.ndarray]:
    """Labels of a picture of one identity alone; those of the record's crops stay."""
    return {
        "words": word_map(DEFAULT_WORDS, (word,), mask[None]),
        "scene": np.int64(IGNORED) if scene is None else place("scene", scene),
        "style": place("style", None),
    }


def place(kind: str, phrase: str | None) -> np.int64:
    """The row of a phrase in its head."""
    return np.int64(VOCABULARY[kind].index(phrase))


def word_map(names: tuple[str, ...], words: tuple[str, ...], masks: np.ndarray) -> np.ndarray:
    """Label of every cell, int64 (h, w): 0 background, 1 + place of the word in `names`; masks bool (S, H, W)."""
    shares = np.stack([coarse(mask) for mask in masks])
    labels = np.array([0, *(1 + names.index(word) for word in words)])
    covered = np.concatenate([np.maximum(1 - shares.sum(axis=0), 0)[None], shares])
    return labels[covered.argmax(axis=0)]


@dataclass(frozen=True, kw_only=True)
class JudgeLoss:
    """(modules, batch, generator) -> (loss, metrics), modules["judge"] trained.

    Every kind of phrase is a choice against all phrases of its kind, a cell's word one in which all subjects together
    weigh as much as all background. Half of the pictures are named by the true outline, half by the judge's own; so are
    half of the crops, as all will be when it judges.
    Identities are a choice against all others of the batch, in both directions (InfoNCE).
    """

    temperature: float = 0.07

    def __call__(self, modules: Mapping, batch: Mapping[str, Tensor], generator) -> tuple[Tensor, dict[str, Tensor]]:
        judge: StickerJudge = modules["judge"]
        pictures = batch["pictures"].float() / 255
        out = judge.see(pictures)
        losses = {
            name: F.cross_entropy(out[name].float(), batch[name], ignore_index=IGNORED) for name in ("scene", "style")
        }
        told = torch.rand(len(pictures), generator=generator, device=pictures.device) < 0.5
        truth = (batch["words"] > 0).to(pictures.dtype)[:, None]
        shares = torch.where(told[:, None, None, None], truth, out["subject"].sigmoid().to(pictures.dtype))
        words = judge.name(pictures, out["subject"], shares)
        losses["words"] = word_loss(words, batch["words"])
        crops, worn = own_crops(batch, words, told)
        losses["accessory"] = F.cross_entropy(judge.worn(worn.float() / 255).float(), batch["accessory"])
        crops = torch.cat([crops, batch["others"]]).float() / 255
        embeddings, colours = judge.crops(crops)
        first, second = embeddings.chunk(2)
        losses["identity"] = contrast(first, second, batch["named"].bool(), self.temperature)
        losses["colour"] = F.cross_entropy(
            colours.float(), torch.cat([colour_labels(batch), batch["colour"]]), ignore_index=IGNORED
        )
        # A batch without any colour word or scene has no loss of that kind.
        losses = {name: torch.nan_to_num(loss, nan=0.0) for name, loss in losses.items()}
        return sum(losses.values()), {name: loss.detach() for name, loss in losses.items()}


@torch.no_grad()
def own_crops(batch: Mapping[str, Tensor], words: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """batch["crops"] and batch["worn"], with the rows that `told` (B,) leaves out cut along the judge's own outline.

    words: (B, 1 + W, h, w) log-probabilities. Rows whose crops are of another picture stay, and those whose subject
    the judge finds badly: another subject's crop would teach something false.
    """
    crops, worn = batch["crops"].clone(), batch["worn"].clone()
    for row in torch.nonzero(~told & (batch["own"] > 0)).flatten().tolist():
        own = int(batch["own"][row])
        scores = words[row, [0, own]].exp().float().cpu().numpy()
        if mask_iou(scores[1] > scores[0], (batch["words"][row] == own).cpu().numpy()) < FOUND:
            continue
        picture = rearrange(batch["pictures"][row], "c h w -> h w c").cpu().numpy()
        mask = found(scores[1] - scores[0], picture.shape[1::-1])
        if mask is not None:
            for rows, cut in ((crops, subject_crop), (worn, surroundings)):
                rows[row] = torch.from_numpy(rearrange(cut(picture, mask), "h w c -> c h w").copy())
    return crops, worn


def word_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of cells (B, 1 + W, h, w) against labels (B, h, w): mean of the background's and the subjects'."""
    errors = F.cross_entropy(logits.float(), labels, reduction="none")
    subject = labels > 0
    return (errors[subject].mean() + errors[~subject].mean()) / 2


def colour_labels(batch: Mapping[str, Tensor]) -> Tensor:
    """Colours of the crops out of composed pictures: styled ones do not count."""
    return torch.where(batch["named"].bool(), batch["colour"], torch.full_like(batch["colour"], IGNORED))


def contrast(first: Tensor, second: Tensor, counts: Tensor, temperature: float) -> Tensor:
    """InfoNCE of unit embeddings (B, d); row i of both is the same identity; counts (B,) bool, rows that take part."""
    first, second = first[counts], second[counts]
    scores = first @ second.T / temperature
    target = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def export_judge(modules: Mapping, folder: Path) -> None:
    """The judge in half precision: a few megabytes, far more digits than its answers need."""
    copy.deepcopy(modules["judge"]).half().save_pretrained(folder)

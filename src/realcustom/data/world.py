"""The sticker world: pictures with known truth, composed from cut-outs, drawn scenes and accessories.

`StickerWorld(folder).record(index)` depends on the settings and the index only, so any worker can make any record.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from realcustom.data.accessories import accessory
from realcustom.data.cutouts import CutoutFolder
from realcustom.data.identity import Identity, draw_identity, paint
from realcustom.data.poses import Pose, between, draw_pose, matrix, paste
from realcustom.data.records import Record, reconstruction
from realcustom.data.scenes import Backgrounds
from realcustom.data.styles import STYLE_PAINTERS
from realcustom.data.vocabulary import (
    ACCESSORY_PHRASES,
    COLOURLESS_STYLES,
    COLOURS,
    DEFAULT_WORDS,
    SCENE_PHRASES,
    WEARERS,
    caption,
    noun_phrase,
)


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """Sizes in pixels, probabilities in 0..1, areas as shares of the picture, turns in degrees.

    split: "train" or "held-out"; the two never share an identity. difficulty: how far a reference's pose and size are
    from the target's, 0 (same pose, other background) to 1 (independent). repaint: probability that a colour word
    changes the subject's colour while the reference keeps the old one ("a red dog" from a blue dog).
    unnamed: of colours that no colour word asks for, to be any at all instead of a named one.
    mirrored: of poses; where cut-outs all face one way, less than half shows them so more often.
    ordered: that of two subjects, or of subject and companion, the one named first surely stands on the left.
    cutout_size: longest side of the cut-outs kept in memory; None derives it from size.
    """

    size: int = 128
    reference_size: int = 128
    words: tuple[str, ...] = DEFAULT_WORDS
    scenes: tuple[str, ...] = tuple(SCENE_PHRASES)
    seed: int = 0
    split: str = "train"
    difficulty: float = 1.0
    two_subjects: float = 0.2
    companion: float = 0.08
    accessory: float = 0.25
    colour_word: float = 0.25
    style: float = 0.1
    no_scene: float = 0.0
    natural: float = 0.3
    patterned: float = 0.35
    unnamed: float = 0.0
    repaint: float = 0.0
    photograph: float = 0.0
    plain_reference: float = 0.7
    area: tuple[float, float] = (0.15, 0.45)
    pair_area: tuple[float, float] = (0.10, 0.22)
    reference_area: tuple[float, float] = (0.18, 0.5)
    turn: float = 28.0
    mirrored: float = 0.5
    ordered: float = 0.0
    plates: int = 48
    cutout_size: int | None = None

    def __post_init__(self) -> None:
        if self.split not in ("train", "held-out"):
            raise ValueError(f'split is {self.split!r}; it must be "train" or "held-out".')
        if not self.words:
            raise ValueError("words is empty; name at least one word that has cut-outs.")
        unknown = [scene for scene in self.scenes if scene not in SCENE_PHRASES]
        if unknown:
            raise ValueError(f"Unknown scenes {unknown}; choose from: {', '.join(SCENE_PHRASES)}.")
        if not 0.0 <= self.difficulty <= 1.0:
            raise ValueError(f"difficulty is {self.difficulty}; it must lie in 0..1.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a record shows, before anything is drawn."""

    identities: tuple[Identity, ...]
    references: tuple[Identity, ...]
    colours: tuple[str | None, ...]
    poses: tuple[Pose, ...]
    accessory: str | None
    companion: tuple[Identity, Pose] | None
    scene: str
    names_scene: bool
    style: str | None


class StickerWorld:
    """Makes records; holds the cut-outs and background plates it has read or drawn so far."""

    def __init__(
        self, folder: str | Path, settings: WorldSettings | None = None, photographs: str | Path | None = None
    ):
        """folder: named RGBA cut-outs (cutouts.py). photographs: folder with scenes.json, needed for photograph > 0."""
        self.settings = settings if settings is not None else WorldSettings()
        size = self.settings.cutout_size or max(48, round(0.875 * self.settings.size))
        self.cutouts = CutoutFolder(folder, size)
        for word in self.settings.words:
            self.cutouts.names(word)
        if self.settings.photograph > 0 and photographs is None:
            raise ValueError("photograph > 0 needs the folder of photographs.")
        self.backgrounds = Backgrounds(self.settings.size, self.settings.seed, self.settings.plates, photographs)
        self._recent: dict[Identity, Image.Image] = {}
        # References of the pictures' size are drawn on the same cached plates.
        same = self.settings.reference_size == self.settings.size
        small = Backgrounds(self.settings.reference_size, self.settings.seed, self.settings.plates)
        self.backdrops = self.backgrounds if same else small

    def record(self, index: int, *, difficulty: float | None = None, reconstruct: bool = False) -> Record:
        """The record of an index.

        difficulty overrides the settings'; reconstruct makes every reference the picture itself.
        """
        settings = self.settings
        rng = random.Random(f"{settings.seed}-{settings.split}-{index}")
        plan = self.plan(rng)
        canvas, phrase, scene = self._scene(plan, rng)
        masks, others = self._compose(canvas, plan, rng)
        if plan.style is not None:
            canvas = STYLE_PAINTERS[plan.style](canvas)
        level = settings.difficulty if difficulty is None else difficulty
        views = () if reconstruct else zip(plan.references, plan.poses, strict=True)
        references = tuple(self.reference(identity, rng, pose=pose, difficulty=level) for identity, pose in views)
        made = Record(
            image=np.asarray(canvas),
            caption=self._caption(plan, phrase),
            words=tuple(identity.word for identity in plan.identities),
            references=references,
            masks=masks,
            others=others,
            attributes=_attributes(plan, scene, phrase, index, level),
        )
        return reconstruction(made) if reconstruct else made

    def plan(self, rng: random.Random) -> Plan:
        """Draws everything that the caption will say, and the poses."""
        settings = self.settings
        count = 2 if len(settings.words) > 1 and rng.random() < settings.two_subjects else 1
        words = rng.sample(settings.words, count)
        style = rng.choice(tuple(STYLE_PAINTERS)) if rng.random() < settings.style else None
        identities, references, colours = [], [], []
        for word in words:
            named = rng.random() < settings.colour_word and style not in COLOURLESS_STYLES
            identity = self.identity(rng, word, colours=tuple(COLOURS)) if named else self.identity(rng, word)
            other = named and rng.random() < settings.repaint
            references.append(self.identity_like(identity, rng) if other else identity)
            identities.append(identity)
            colours.append(identity.colour if named else None)
        companion, poses = None, self._poses(rng, count)
        if count == 1 and len(settings.words) > 1 and rng.random() < settings.companion:
            side = 0.76 if self._ordered(rng) else rng.choice((0.24, 0.76))
            other = rng.choice([word for word in settings.words if word != words[0]])
            pose = self._pose(rng, (0.07, 0.12), centre=(side, 0.62), spread=0.08)
            companion = (self.identity(rng, other), pose)
            poses = (self._pose(rng, settings.pair_area, centre=(1 - side, 0.55), spread=0.06),)
        wears = words[0] in WEARERS and rng.random() < settings.accessory
        worn = rng.choice(tuple(ACCESSORY_PHRASES)) if wears else None
        if worn in ("hat", "crown"):
            # Headwear needs room above the head.
            poses = (replace(poses[0], area=poses[0].area * 0.75, y=max(poses[0].y, 0.62)), *poses[1:])
        return Plan(
            identities=tuple(identities),
            references=tuple(references),
            colours=tuple(colours),
            poses=poses,
            accessory=worn,
            companion=companion,
            scene=rng.choice(settings.scenes),
            names_scene=rng.random() >= settings.no_scene,
            style=style,
        )

    def identity(self, rng: random.Random, word: str, colours: tuple[str, ...] | None = None) -> Identity:
        """A random identity of the settings' split; colours asks for one of these main colours all over."""
        settings, cutouts = self.settings, self.cutouts.names(word)
        if colours is not None:
            return draw_identity(rng, word, cutouts, split=settings.split, colours=colours, natural=0.0, patterned=-1.0)
        shares = {"natural": settings.natural, "patterned": settings.patterned, "unnamed": settings.unnamed}
        return draw_identity(rng, word, cutouts, split=settings.split, **shares)

    def identity_like(self, identity: Identity, rng: random.Random) -> Identity:
        """The same individual in another main colour of the same split, or itself when there is none."""
        others = [identity.painted(colour) for colour in COLOURS if colour != identity.colour]
        others = [other for other in others if other.split == self.settings.split]
        return rng.choice(others) if others else identity

    def reference(
        self, identity: Identity, rng: random.Random, *, pose: Pose | None = None, difficulty: float = 1.0
    ) -> np.ndarray:
        """A picture (reference_size, reference_size, 3) uint8 of the identity alone, on a plain or drawn background."""
        settings = self.settings
        own = self._pose(rng, settings.reference_area, spread=0.08)
        if pose is not None:
            own = between(pose, own, difficulty, rng)
        plain = rng.random() < settings.plain_reference
        if plain:
            canvas = self.backdrops.plain(rng, behind_white=identity.shade == "white")
        else:
            canvas = self.backdrops.background(rng.choice(settings.scenes), rng)
        cutout = self.cutouts.load(identity.word, identity.cutout)
        transform = matrix(cutout, identity.proportions, own, settings.reference_size)
        paste(canvas, self._painted(identity), transform)
        return np.asarray(canvas)

    def _poses(self, rng: random.Random, count: int) -> tuple[Pose, ...]:
        settings = self.settings
        if count == 1:
            return (self._pose(rng, settings.area, centre=(0.5, 0.55), spread=0.25),)
        sides = [0.28, 0.72]
        if not self._ordered(rng):
            rng.shuffle(sides)
        return tuple(self._pose(rng, settings.pair_area, centre=(side, 0.55), spread=0.06) for side in sides)

    def _ordered(self, rng: random.Random) -> bool:
        return self.settings.ordered > 0 and rng.random() < self.settings.ordered

    def _pose(self, rng: random.Random, area: tuple[float, float], **place) -> Pose:
        return draw_pose(rng, area, turn=self.settings.turn, mirrored=self.settings.mirrored, **place)

    def _scene(self, plan: Plan, rng: random.Random) -> tuple[Image.Image, str | None, str]:
        if rng.random() < self.settings.photograph:
            canvas, scene, phrase = self.backgrounds.photograph(rng)
        else:
            canvas, scene, phrase = self.backgrounds.background(plan.scene, rng), plan.scene, SCENE_PHRASES[plan.scene]
        return canvas, phrase if plan.names_scene else None, scene

    def _compose(self, canvas: Image.Image, plan: Plan, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """Draws companion, subjects and accessory; returns the visible masks of the subjects and of the rest, bool
        (S, H, W) and (K, H, W)."""
        size = self.settings.size
        room = 0.96 if len(plan.identities) == 1 and plan.companion is None else 0.56
        masks: list[np.ndarray] = []
        others: list[np.ndarray] = []
        if plan.companion is not None:
            others.append(self._draw(canvas, *plan.companion, room=0.5)[0])
        for place, (identity, pose) in enumerate(zip(plan.identities, plan.poses, strict=True)):
            worn = plan.accessory if place == 0 else None
            cover, worn_cover = self._draw(canvas, identity, pose, room=room, worn=worn, rng=rng)
            masks = [mask & ~(cover | worn_cover) for mask in masks] + [cover]
            others = [mask & ~cover for mask in others] + ([worn_cover] if worn is not None else [])
        assert masks[0].shape == (size, size)
        return np.stack(masks), np.stack(others) if others else np.zeros((0, size, size), bool)

    def _draw(
        self, canvas: Image.Image, identity: Identity, pose: Pose, *, room: float, worn: str | None = None,
        rng: random.Random | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Draws one identity, wearing an accessory or not; returns both covers, bool (H, W)."""
        cutout = self.cutouts.load(identity.word, identity.cutout)
        transform = matrix(cutout, identity.proportions, pose, canvas.width, room)
        alpha = paste(canvas, self._painted(identity), transform)
        cover = np.asarray(alpha) > 127
        if worn is None or rng is None:
            return cover, np.zeros_like(cover)
        sprite, placed = accessory(worn, cutout, rng)
        return cover, np.asarray(paste(canvas, sprite, transform @ placed)) > 127

    def _painted(self, identity: Identity) -> Image.Image:
        """The identity as RGBA; picture and reference of a record share one painting."""
        if identity not in self._recent:
            if len(self._recent) >= 8:
                self._recent.clear()
            cutout = self.cutouts.load(identity.word, identity.cutout)
            self._recent[identity] = Image.fromarray(paint(cutout, identity))
        return self._recent[identity]

    def _caption(self, plan: Plan, phrase: str | None) -> str:
        articles = self.cutouts.articles
        subjects = [
            noun_phrase(identity.word, colour, articles[identity.word])
            for identity, colour in zip(plan.identities, plan.colours, strict=True)
        ]
        beside = plan.companion[0].word if plan.companion is not None else None
        return caption(
            subjects,
            accessory=plan.accessory,
            companion=noun_phrase(beside, None, articles[beside]) if beside is not None else None,
            scene_phrase=phrase,
            style=plan.style,
        )


def _attributes(plan: Plan, scene: str, phrase: str | None, index: int, difficulty: float) -> dict:
    return {
        "index": index,
        "scene": scene,
        "scene_phrase": phrase,
        "style": plan.style,
        "accessory": plan.accessory,
        "companion": plan.companion[0].word if plan.companion is not None else None,
        "colours": list(plan.colours),
        "identities": [identity.id for identity in plan.identities],
        "reference_identities": [identity.id for identity in plan.references],
        "poses": [pose.to_dict() for pose in plan.poses],
        "difficulty": difficulty,
        "reconstruction": False,
    }

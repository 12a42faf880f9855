"""The records that travel: what is asked for (`Subject`, `Request`) and what comes back (`Progress`, `Result`).

Nothing here needs torch. A record checks itself when it is made, so that every door (Python, command line, web, REST,
batch) refuses the same input with the same sentence. What only a loaded model can know (its size grid, the number of
tokens of a word) is checked by `realcustom.engine.engine`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, replace
from os import PathLike, fspath
from typing import Any

from realcustom.checks import box, check_fields, finite, outline, text, weights_of, whole

MAX_SUBJECTS = 4
MAX_IMAGES = 64
MAX_STEPS = 1000
MAX_SIDE = 8192
MAX_SEED = 2**32 - 1  # torch's CPU generator reads 32 bits
# What every door says of such an image, after its name.
REFUSED = "is black: the model's safety checker refused it. Another seed, or another prompt, may pass."
RANDOM_SEED = -1  # stands for a seed that the request draws when it is made

WHOLE_FIELDS = (
    ("height", "The height", 8, MAX_SIDE),
    ("width", "The width", 8, MAX_SIDE),
    ("steps", "The number of steps", 1, MAX_STEPS),
    ("num_images", "The number of images", 1, MAX_IMAGES),
    ("seed", "The seed", RANDOM_SEED, MAX_SEED),
)
EDGE_FIELDS = (("feather", "The feather", 0, 1024), ("padding", "The padding", 0, 1024))
FINITE_FIELDS = (
    ("guidance_scale", "The guidance scale", 100.0),
    ("image_guidance_scale", "The image guidance scale", 100.0),
    ("mask_scope", "The mask scope", 1.0),
)

MAX_CONTROLS = 4
NEEDED = {"image": "a picture to start from", "hole": "the place where it is drawn anew"}


REFERENCE, IMAGE, MASK = "reference", "image", "mask"
Visit = Callable[[Any, str, str], Any]
"""(picture, REFERENCE, IMAGE or MASK, what it is) -> what stands in its place."""


@dataclass(frozen=True)
class Subject:
    """What one word of the prompt stands for.

    images: one or more references of the same subject, each a path, a `PIL.Image.Image` or an open binary file.
    strength: how much the references act, in [0, 2]; 1 is the method as published, 0 leaves the word to the text.
    region: where in the output the subject may stand; None is everywhere, otherwise a box (left, top, right, bottom) in
        fractions of the output's width and height (0 to 1), or a mask (path, image or 2-D array of any size, stretched
        to the output; white = here).
    weights: how much each image counts among the images of its subject, one number from 0 to 1 an image, at least one
        of them above 0; None is all alike.
    """

    images: tuple[Any, ...]
    strength: float = field(default=1.0, kw_only=True)
    region: Any = field(default=None, kw_only=True)
    weights: tuple[float, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        images = tuple(self.images) if isinstance(self.images, (list, tuple)) else (self.images,)
        if not images or any(image is None for image in images):
            raise ValueError("A subject needs at least one reference image.")
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "strength", finite("The strength of a subject", self.strength, 0.0, 2.0))
        if isinstance(self.region, (list, tuple)):
            object.__setattr__(self, "region", box(self.region))
        if self.weights is not None:
            object.__setattr__(self, "weights", weights_of(self.weights, len(images)))

    def __eq__(self, other: object) -> bool:
        """Equal field by field, also where pictures or a region are arrays, whose own equality is an array."""
        if not isinstance(other, Subject):
            return NotImplemented
        if len(self.images) != len(other.images):
            return False
        pairs = [*zip(self.images, other.images, strict=True), (self.region, other.region)]
        return (self.strength, self.weights) == (other.strength, other.weights) and all(_same(*pair) for pair in pairs)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; images and a mask region must be paths or ids (ValueError for an image in memory)."""
        return json_form(self.with_pictures(lambda picture, *_: _path(picture)))

    def with_pictures(self, visit: Visit, word: str = "") -> Subject:
        """The subject with `visit(picture, kind, what)` in the place of every picture; see `Request.with_pictures`."""
        images = [visit(image, REFERENCE, f'The reference of "{word}"') for image in self.images]
        region = self.region
        if region is not None and not isinstance(region, tuple):
            region = visit(region, MASK, f'The region of "{word}"')
        return _copy(self, images=tuple(images), region=region)

    @classmethod
    def from_any(cls, value: Any) -> Subject:
        """A `Subject` from a subject, its JSON form, one image or a list of images."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            check_fields(value, cls, "a subject")
            if "images" not in value:
                raise ValueError("A subject needs at least one reference image.")
            return cls(**value)
        return cls(images=value)


@dataclass(frozen=True)
class ControlImage:
    """A picture for a ControlNet: outlines, depth, a pose.

    image: a path, a `PIL.Image.Image` or an open binary file, stretched to the output.
    name: of the ControlNet as it was loaded; "" where there is one only.
    scale: how much it acts, 0 to 2.
    start, end: shares of the run between which it acts, 0 to 1.
    """

    image: Any
    name: str = field(default="", kw_only=True)
    scale: float = field(default=1.0, kw_only=True)
    start: float = field(default=0.0, kw_only=True)
    end: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        text("The name of a control", self.name)
        for name, high in (("scale", 2.0), ("start", 1.0), ("end", 1.0)):
            object.__setattr__(self, name, finite(f"The {name} of a control", getattr(self, name), 0.0, high))
        if self.start >= self.end:
            raise ValueError(f"A control must end after its start, not go from {self.start:g} to {self.end:g}.")

    def __eq__(self, other: object) -> bool:
        """Equal field by field, also where the picture is an array."""
        return _equal(self, other) if isinstance(other, ControlImage) else NotImplemented

    @classmethod
    def from_any(cls, value: Any) -> ControlImage:
        """A `ControlImage` from one, its JSON form, or a picture."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            check_fields(value, cls, "a control")
            if "image" not in value:
                raise ValueError("A control needs an image.")
            return cls(**value)
        return cls(value)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of the engine. None means: the loaded model's own default.

    prompt: what the images show; every key of `subjects` stands in it as a whole word or phrase.
    subjects: target word -> `Subject` (or an image, or a list of images); at most `MAX_SUBJECTS`; none is plain
        text-to-image.
    height, width: output size in pixels, multiples of the model's grid.
    steps: denoising steps, 1 to 1000.
    seed: image i of the request is drawn from seed + i, by itself: one seed is one image, whatever else is made. -1
        draws one at random here and now; the request then holds the seed that was drawn.
    num_images: 1 to 64.
    guidance_scale: w of RealCustom++ or w_t of RealCustom Eq. 13, 0 to 100. Given alone it is the single scale of
        RealCustom++.
    image_guidance_scale: w_i of RealCustom Eq. 13, 0 to 100. With neither scale the model's own are taken.
    mask_scope: gamma_scope, the share of positions that the guidance mask keeps, above 0 up to 1.
    preset: a name in `realcustom.engine.presets`; it fills in what the request leaves open.
    image: a picture to start from, as an image of a subject.
    denoising: share of the steps that are run on it, above 0 up to 1, where nothing of it is left but its size. None:
        0.8, with a hole 1.
    hole: where the picture is drawn anew, the rest stays as it is: a box (left, top, right, bottom) or three and more
        corners ((x, y), ...), in fractions of its width and height, or a mask as in `Subject.region`. It is the region
        of the subjects that have none.
    feather: pixels of the picture over which the new passes into the old, inside the hole.
    padding: pixels of the picture around the hole that are looked at while only that part is drawn, at the full size of
        the output; None draws the whole picture.
    controls: pictures for ControlNets, at most `MAX_CONTROLS`.
    long_prompt: read prompts longer than the model reads at once, in chunks.
    prompt_weights: (word:1.3), (word) and [word] in prompts weigh words; otherwise these marks are text.
    """

    prompt: str
    subjects: Mapping[str, Subject] = field(default_factory=dict)
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    seed: int = 0
    num_images: int = 1
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    mask_scope: float | None = None
    preset: str = "exact"
    image: Any = None
    denoising: float | None = None
    hole: Any = None
    feather: int = 0
    padding: int | None = None
    controls: tuple[ControlImage, ...] = ()
    long_prompt: bool = False
    prompt_weights: bool = False

    def __post_init__(self) -> None:
        if not text("The prompt", self.prompt).strip():
            raise ValueError("The prompt is empty.")
        object.__setattr__(self, "subjects", _subjects(self.subjects))
        if self.negative_prompt is not None:
            text("The negative prompt", self.negative_prompt)
        text("The preset", self.preset)
        for name, what, low, high in WHOLE_FIELDS:
            if getattr(self, name) is not None or name in ("num_images", "seed"):
                object.__setattr__(self, name, whole(what, getattr(self, name), low, high))
        if self.seed == RANDOM_SEED:
            object.__setattr__(self, "seed", secrets.randbelow(MAX_SEED + 1))
        for name, what, high in FINITE_FIELDS:
            if getattr(self, name) is not None:
                number = finite(what, getattr(self, name), 0.0, high)
                # Two JSON texts of one number would be two requests, so an int stays one.
                object.__setattr__(self, name, int(number) if isinstance(getattr(self, name), int) else number)
        self._check_picture()
        for name in ("long_prompt", "prompt_weights"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}.")
        if self.mask_scope == 0.0:
            raise ValueError("The mask scope must be above 0; to leave the subject out, give no subject.")

    def __eq__(self, other: object) -> bool:
        """Equal field by field, also where pictures are arrays."""
        return _equal(self, other) if isinstance(other, Request) else NotImplemented

    def _check_picture(self) -> None:
        for name, what, low, high in EDGE_FIELDS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(what, getattr(self, name), low, high))
        if self.denoising is not None:
            object.__setattr__(self, "denoising", finite("The denoising", self.denoising, 0.0, 1.0))
            if self.denoising == 0:
                raise ValueError("The denoising must be above 0: at 0 the picture would stay as it is.")
        if isinstance(self.hole, (list, tuple)):
            object.__setattr__(self, "hole", outline(self.hole))
        needed = {"denoising": "image", "hole": "image", "padding": "hole", "feather": "hole"}
        for name, other in needed.items():
            value = getattr(self, name)
            said = value is not None and not (isinstance(value, int) and value == 0)  # a mask may be an array
            if said and getattr(self, other) is None:
                raise ValueError(f"{name} needs {other}: {NEEDED[other]}.")
        if not isinstance(self.controls, (list, tuple)) or len(self.controls) > MAX_CONTROLS:
            raise ValueError(f"The controls must be a list of at most {MAX_CONTROLS}.")
        object.__setattr__(self, "controls", tuple(ControlImage.from_any(control) for control in self.controls))

    def with_pictures(self, visit: Visit) -> Request:
        """The request with `visit(picture, kind, what)` in the place of every picture that it names.

        kind: `REFERENCE`, `IMAGE` or `MASK`. what: "The start picture" and so on, to begin a sentence.
        """
        subjects = {word: subject.with_pictures(visit, word) for word, subject in self.subjects.items()}
        image, hole = self.image, self.hole
        if image is not None:
            image = visit(image, IMAGE, "The start picture")
        if hole is not None and not isinstance(hole, tuple):
            hole = visit(hole, MASK, "The hole")
        controls = [
            _copy(control, image=visit(control.image, IMAGE, f"The control picture {control.name}".rstrip()))
            for control in self.controls
        ]
        return _copy(self, subjects=subjects, image=image, hole=hole, controls=tuple(controls))

    @property
    def steps_run(self) -> int | None:
        """Denoising steps that are made for an image: fewer than `steps` on a start picture."""
        if self.steps is None or self.image is None or self.denoising is None:
            return self.steps
        return int(self.steps * self.denoising)

    def image_seed(self, index: int) -> int:
        """The seed of image `index` (0-based): seed + index, starting again at 0 after `MAX_SEED`."""
        return (self.seed + index) % (MAX_SEED + 1)

    def image_request(self, index: int) -> Request:
        """The request that makes only image `index` (0-based) of this one: the same image, alone."""
        if not 0 <= index < self.num_images:
            raise IndexError(f"image {index} of a request for {self.num_images}")
        return replace(self, seed=self.image_seed(index), num_images=1)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, the inverse of `from_dict`; images must be paths or ids (ValueError for an image in memory)."""
        return json_form(self.with_pictures(lambda picture, *_: _path(picture)))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Request:
        """A request from its JSON form; unknown fields and wrong values are ValueErrors that name them."""
        check_fields(record, cls, "a request")
        if "prompt" not in record:
            raise ValueError("A request needs a prompt.")
        return cls(**record)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a request is: `step` of `steps` done over all its images (`image` of `images` are finished).

    latents (b, c, h, w) and masks {word: (b, h', w')} are those of the batch under way, for a preview; None where the
    pipeline gives none. They are the running tensors: read them, do not write to them.
    """

    step: int
    steps: int
    image: int
    images: int
    latents: Any = None
    masks: Mapping[str, Any] | None = None


class Cancelled(Exception):
    """A run was stopped between two steps because its caller asked for it."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a request made.

    images: `num_images` PIL images.
    masks: target word -> float array (steps, num_images, h, w) in [0, 1], the guidance mask of every step.
    metadata: one JSON-ready dict per image, everything needed to make that image again by itself; "flagged" is True in
        that of a flagged one.
    request: the request with the model's defaults filled in.
    flagged: for every image whether the model's safety checker refused it: it is black then.
    """

    images: tuple[Any, ...]
    masks: Mapping[str, Any]
    metadata: tuple[Mapping[str, Any], ...]
    request: Request
    flagged: tuple[bool, ...] = ()


def _subjects(value: Any) -> dict[str, Subject]:
    if not isinstance(value, Mapping):
        raise ValueError("The subjects must be given as word -> image.")
    if len(value) > MAX_SUBJECTS:
        raise ValueError(f"{len(value)} subjects were given; {MAX_SUBJECTS} is the most.")
    subjects = {}
    for word, subject in value.items():
        if not text("The word of a subject", word).strip():
            raise ValueError("The word of a subject is empty.")
        subjects[word] = Subject.from_any(subject)
    return subjects


def _equal(one: Any, other: Any) -> bool:
    return all(_same(getattr(one, entry.name), getattr(other, entry.name)) for entry in fields(one))


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if getattr(one, "shape", None) != getattr(other, "shape", None):
        return False
    equal = one == other
    return bool(equal.all() if hasattr(equal, "all") else equal)


def _copy(record: Any, **changes: Any) -> Any:
    """`dataclasses.replace` without the checks, which were made and know nothing of what stands for a picture."""
    other = copy(record)
    for name, value in changes.items():
        object.__setattr__(other, name, value)
    return other


def json_form(value: Any) -> Any:
    """Records and tuples as dicts and lists, all the way down; anything else as it is."""
    if isinstance(value, (Request, Subject, ControlImage)):
        return {entry.name: json_form(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {name: json_form(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_form(part) for part in value]
    return value


def _path(value: Any) -> str:
    if not isinstance(value, (str, PathLike)):
        raise ValueError("An image in memory has no JSON form; save it and give its path.")
    return fspath(value)

"""The records that travel: what is asked for (`Subject`, `Request`) and what comes back (`Progress`, `Result`).

Nothing here needs torch. A record checks itself when it is made, so that every door (Python, command line, web, REST,
batch) refuses the same input with the same sentence. What only a loaded model can know (its size grid, the number of
tokens of a word) is checked by `realcustom.engine.engine`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any

MAX_SUBJECTS = 4
MAX_IMAGES = 64
MAX_STEPS = 1000
MAX_SIDE = 8192
MAX_SEED = 2**32 - 1  # torch's CPU generator reads 32 bits
# What every door says of such an image, after its name.
REFUSED = "is black: the model's safety checker refused it. Another seed, or another prompt, may pass."
RANDOM_SEED = -1  # stands for a seed that the request draws when it is made
MAX_PROMPT_CHARACTERS = 2000

WHOLE_FIELDS = (
    ("height", "The height", 8, MAX_SIDE),
    ("width", "The width", 8, MAX_SIDE),
    ("steps", "The number of steps", 1, MAX_STEPS),
    ("num_images", "The number of images", 1, MAX_IMAGES),
    ("seed", "The seed", RANDOM_SEED, MAX_SEED),
)
FINITE_FIELDS = (
    ("guidance_scale", "The guidance scale", 100.0),
    ("image_guidance_scale", "The image guidance scale", 100.0),
    ("mask_scope", "The mask scope", 1.0),
)

Box = tuple[float, float, float, float]


def plain_number(value: Any) -> Any:
    """A number of numpy or another array library (a scalar, or an array of no dimensions) as Python's own."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


def finite(name: str, value: Any, low: float, high: float) -> float:
    """`value` as a float within [low, high]; ValueError with one sentence that names `name` otherwise."""
    number = plain_number(value)
    # Compared before it is converted: an int may be larger than any float, and NaN is within no bounds.
    if isinstance(number, bool) or not isinstance(number, Real) or not low <= number <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, not {_shown(value)}.")
    return float(number)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """`value`, 7 or 7.0, as an int within [low, high]; ValueError with one sentence that names `name` otherwise."""
    number = plain_number(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, Integral) or not low <= number <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not {_shown(value)}.")
    return int(number)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def text(name: str, value: Any) -> str:
    """`value` as a printable string of at most `MAX_PROMPT_CHARACTERS`; ValueError otherwise."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {type(value).__name__}.")
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"{name} has {len(value)} characters; {MAX_PROMPT_CHARACTERS} is the most.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds characters that are not valid text.") from None
    if "\0" in value:
        raise ValueError(f"{name} holds a null character.")
    return value


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
            object.__setattr__(self, "region", _box(self.region))
        if self.weights is not None:
            object.__setattr__(self, "weights", _weights(self.weights, len(images)))

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
        region = self.region
        if region is not None and not isinstance(region, tuple):
            region = _path(region)
        weights = None if self.weights is None else list(self.weights)
        images = [_path(image) for image in self.images]
        return {"images": images, "strength": self.strength, "region": region, "weights": weights}

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
        if self.mask_scope == 0.0:
            raise ValueError("The mask scope must be above 0; to leave the subject out, give no subject.")

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
        record = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        record["subjects"] = {word: subject.to_dict() for word, subject in self.subjects.items()}
        return record

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


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if getattr(one, "shape", None) != getattr(other, "shape", None):
        return False
    equal = one == other
    return bool(equal.all() if hasattr(equal, "all") else equal)


def _box(value: Any) -> Box:
    if len(value) != 4:
        raise ValueError("The region of a subject must be a box of four numbers: left, top, right, bottom.")
    box = tuple(finite("A side of a subject's region", side, 0.0, 1.0) for side in value)
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f"The region {list(box)} is empty: left must be below right and top below bottom.")
    return box


def _weights(value: Any, count: int) -> tuple[float, ...]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise ValueError(f"The weights of a subject must be {count} numbers, one for each of its images.")
    weights = tuple(finite("The weight of a reference image", weight, 0.0, 1.0) for weight in value)
    if max(weights) == 0.0:
        raise ValueError("One of the weights of a subject must be above 0; to leave it out, set its strength to 0.")
    return weights


def _path(value: Any) -> str:
    if not isinstance(value, (str, PathLike)):
        raise ValueError("An image in memory has no JSON form; save it and give its path.")
    return fspath(value)


def check_fields(record: Any, cls: type, what: str) -> None:
    """ValueError unless `record` is a mapping that holds only fields of the dataclass `cls`, called `what`."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{what.capitalize()} must be a record of fields.")
    names = {entry.name for entry in fields(cls)}
    for name in record:
        if name not in names:
            raise ValueError(f"'{name}' is no field of {what}; it has {', '.join(sorted(names))}.")

"""Parameters of OpenAI's image interface as the fields of a request.

Every field of a request may be given beside them under its own name. What has no meaning here and changes no picture is
passed over; what would have to be disobeyed is refused.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

from PIL import Image, ImageChops

from realcustom.data.nouns import find_target_words, singular
from realcustom.pictures.opening import open_as_stored
from realcustom.serving.problems import Refusal
from realcustom.serving.service import OPTIONS
from realcustom.types import RANDOM_SEED, Request

MAX_REFERENCES = 16
RENAMED = {"n": "num_images", "num_inference_steps": "steps"}
WITHOUT_EFFECT = {"user", "safety_identifier", "moderation", "style", "input_fidelity", "output_compression"}
QUALITIES = {
    "auto": None,
    "standard": None,
    "low": "turbo",
    "medium": "fast",
    "high": "exact",
    "hd": "exact",
    "xhigh": "exact",
    "max": "exact",
}
# What may be said only as it is here.
FIXED = {
    "output_format": ("png",),
    "background": ("auto", "opaque"),
    "stream": (False,),
    "partial_images": (0,),
    "response_format": ("b64_json", "url"),
}
SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
IMAGE, WORD = re.compile(r"image(\[\d*\])?"), re.compile(r"words(\[\d*\])?")


@dataclass(frozen=True)
class Asked:
    """What a client wants.

    fields: of `Service.submit`. as_url: whether an image is given by its address instead of its bytes.
    """

    fields: dict[str, Any]
    as_url: bool


def read_fields(given: Mapping[str, Any]) -> Asked:
    """Parameters (JSON values; null is absent) as fields.

    Raises:
        Refusal: a parameter is not known, or asks for what cannot be.
    """
    given = {name: value for name, value in given.items() if value is not None and name not in WITHOUT_EFFECT}
    for name, values in FIXED.items():
        if name in given and given[name] not in values:
            shown = " or ".join(json.dumps(value) for value in values)
            raise Refusal(f"{name} must be {shown} here, not {json.dumps(given[name])[:80]}.", name)
    as_url = given.get("response_format") == "url"
    quality, size = given.pop("quality", None), given.pop("size", None)
    wanted: dict[str, Any] = {"seed": RANDOM_SEED}
    for name, value in given.items():
        if name in FIXED:
            continue
        field = RENAMED.get(name, name)
        if field not in _names():
            raise Refusal(f"Unknown parameter: '{name[:80]}'.", name[:80], "unknown_parameter")
        if field in wanted and field != "seed":
            raise Refusal(f"{name} is given twice, also as {field}.", name)
        wanted[field] = value
    if size not in (None, "auto"):
        wanted |= _size(size, wanted)
    if quality is not None:
        wanted |= _quality(quality, wanted)
    return Asked(wanted, as_url)


def typed(name: str, text: str) -> Any:
    """A value of a form, where all are texts, as JSON has it: numbers, booleans and records by the field's type.

    Raises:
        Refusal: it is not of that type.
    """
    field = RENAMED.get(name, name)
    hints = get_type_hints(Request)
    if field in hints and str in (hints[field], *get_args(hints[field])):
        return text
    if field not in hints and name not in ("stream", "partial_images", *OPTIONS[:1]):
        return text
    try:
        return json.loads(text, parse_constant=float)
    except (ValueError, RecursionError):
        raise Refusal(f"{name} cannot be read: {text[:80]!r}.", name) from None


def subjects_of(
    prompt: Any, images: Sequence[Any], words: Sequence[str], region: Any = None, known: Sequence[str] = ()
) -> dict[str, Any]:
    """Subjects of references: each image with its word; those of one word are references of one subject.

    Without words all images are the one thing that the prompt names, or the one among them that the model knows.

    Args:
        prompt: as given.
        images: whatever a subject's images may be.
        words: one an image, or none.
        region: where the subject of the first image may stand.
        known: the subjects that a model of a closed world draws; none for one that reads any text.

    Raises:
        Refusal: no or too many images, not as many words, or the prompt names several things or none.
    """
    if not 0 < len(images) <= MAX_REFERENCES:
        raise Refusal(f"image[] must be 1 to {MAX_REFERENCES} pictures, not {len(images)}.", "image")
    if words and len(words) != len(images):
        raise Refusal(f"words[] must be one word for each image[]: {len(images)}, not {len(words)}.", "words")
    words = words or [_only_thing(prompt, known)] * len(images)
    subjects: dict[str, Any] = {}
    for word, image in zip(words, images, strict=True):
        subjects.setdefault(word, {"images": []})["images"].append(image)
    if region is not None:
        subjects[words[0]]["region"] = region
    return subjects


def mask_region(data: bytes) -> bytes:
    """A mask whose transparent part is where something may change, as the PNG of a region, which is white there.

    Raises:
        ValueError: it cannot be opened; `Refusal` where it has no transparency.
    """
    image, _ = open_as_stored(data)
    if not image.has_transparency_data:
        raise Refusal("The mask needs transparency: where it is transparent the subject of image[0] may stand.", "mask")
    region = ImageChops.invert(image.convert("RGBA").getchannel("A"))
    stream = io.BytesIO()
    Image.merge("RGB", [region] * 3).save(stream, format="PNG")
    return stream.getvalue()


def _names() -> set[str]:
    return {entry.name for entry in fields(Request)} | set(OPTIONS)


def _size(size: Any, wanted: Mapping[str, Any]) -> dict[str, int]:
    match = SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        raise Refusal(f'size must look like 1024x1024 (width x height), or be "auto", not {str(size)[:80]!r}.', "size")
    if "width" in wanted or "height" in wanted:
        raise Refusal("Give either size or width and height.", "size")
    return {"width": int(match[1]), "height": int(match[2])}


def _quality(quality: Any, wanted: Mapping[str, Any]) -> dict[str, str]:
    if not isinstance(quality, str) or quality not in QUALITIES:
        raise Refusal(f"quality must be one of {', '.join(QUALITIES)}, not {str(quality)[:80]!r}.", "quality")
    preset = QUALITIES[quality]
    if preset is None:
        return {}
    if wanted.get("preset", preset) != preset:
        raise Refusal(f'Give either quality or preset: {quality} is the preset "{preset}".', "quality")
    return {"preset": preset}


def _only_thing(prompt: Any, known: Sequence[str]) -> str:
    found = [word.text for word in find_target_words(prompt)] if isinstance(prompt, str) else []
    drawn = [word for word in found if word.lower() in known or singular(word) in known] or found
    if len(drawn) == 1:
        return drawn[0]
    named = f"the prompt names {', '.join(drawn)}" if drawn else "no word of the prompt is known to be a thing"
    raise Refusal(
        f"Which word of the prompt does image[] show? Send words[], one word for each image[]; {named}.", "words"
    )

"""The values of records, each checked with one sentence that names it. Needs no torch.

Every door refuses the same value with the same words, since all of them make the records of `realcustom.types`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

MAX_PROMPT_CHARACTERS = 2000
MAX_POINTS = 256  # of a polygon

Box = tuple[float, float, float, float]
Point = tuple[float, float]


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


def box(value: Any, what: str = "region of a subject") -> Box:
    if len(value) != 4:
        raise ValueError(f"The {what} must be a box of four numbers: left, top, right, bottom.")
    sides = tuple(finite(f"A side of the {what}", side, 0.0, 1.0) for side in value)
    if sides[0] >= sides[2] or sides[1] >= sides[3]:
        raise ValueError(f"The {what} {list(sides)} is empty: left must be below right and top below bottom.")
    return sides


def outline(value: Any) -> Box | tuple[Point, ...]:
    """A hole as a box or as the corners of a polygon."""
    if len(value) == 4 and not any(isinstance(part, (list, tuple)) for part in value):
        return box(value, "hole")
    if not 3 <= len(value) <= MAX_POINTS or not all(
        isinstance(point, (list, tuple)) and len(point) == 2 for point in value
    ):
        raise ValueError(f"A hole must be a box of four numbers, or 3 to {MAX_POINTS} corners of two numbers each.")
    return tuple(tuple(finite("A corner of the hole", side, 0.0, 1.0) for side in point) for point in value)


def weights_of(value: Any, count: int) -> tuple[float, ...]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise ValueError(f"The weights of a subject must be {count} numbers, one for each of its images.")
    weights = tuple(finite("The weight of a reference image", weight, 0.0, 1.0) for weight in value)
    if max(weights) == 0.0:
        raise ValueError("One of the weights of a subject must be above 0; to leave it out, set its strength to 0.")
    return weights


def check_fields(record: Any, cls: type, what: str) -> None:
    """ValueError unless `record` is a mapping that holds only fields of the dataclass `cls`, called `what`."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{what.capitalize()} must be a record of fields.")
    names = {entry.name for entry in fields(cls)}
    for name in record:
        if name not in names:
            raise ValueError(f"'{name}' is no field of {what}; it has {', '.join(sorted(names))}.")

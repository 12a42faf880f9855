"""The guidance mask's settings as JSON, which name the rules and functions that `MaskSettings` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from realcustom.guidance.mask import NORMALISATIONS, RULES, MaskSettings, Updates

NAMED = {"normalisation": NORMALISATIONS, "rule": RULES}


def mask_settings(record: Mapping[str, Any], **defaults: Any) -> MaskSettings:
    """Settings of a JSON record.

    Args:
        record: fields of `MaskSettings`; `normalisation` and `rule` by their names, `updates` as {"until": 12,
            "interval": 1}.
        defaults: fields that the record does not name.

    Raises:
        ValueError: a field is unknown or has a value that makes no sense.
    """
    known = {entry.name for entry in fields(MaskSettings)}
    values = dict(defaults)
    for name, value in record.items():
        if name not in known:
            raise ValueError(f"'{name}' is no setting of the mask; there are {', '.join(sorted(known))}.")
        if name in NAMED and value not in NAMED[name]:
            raise ValueError(f'The mask has no {name} "{value}"; there are {", ".join(NAMED[name])}.')
        if name in NAMED:
            value = NAMED[name][value]
        elif name == "updates":
            value = _updates(value)
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return MaskSettings(**values)
    except TypeError as error:
        raise ValueError(f"The mask's settings make no sense: {error}.") from error


def _updates(record: Any) -> Updates:
    if not isinstance(record, Mapping) or not record.keys() <= {"until", "interval"}:
        raise ValueError(f'The mask\'s updates must look like {{"until": 12, "interval": 1}}, not {record!r}.')
    return Updates(**record)

"""The settings that travel with an adapter: `pipeline.json` beside its weights. Needs no torch.

They are what its weights expect of a pipeline and what a call takes that says nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from realcustom.checks import finite, text, whole
from realcustom.types import MAX_SIDE, MAX_STEPS

SETTINGS = "pipeline.json"


@dataclass(frozen=True, kw_only=True)
class CallDefaults:
    """What a call takes where it says nothing; None: the pipeline's, the adapter's or the base model's own.

    steps: denoising steps.
    height, width: in pixels.
    guidance_scale, image_guidance_scale: as in a request; the second belongs to the first.
    negative_prompt: of calls with subjects.
    mask: as `realcustom.guidance.records.mask_settings` reads it.
    """

    steps: int | None = None
    height: int | None = None
    width: int | None = None
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    negative_prompt: str | None = None
    mask: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            whole("The number of steps", self.steps, 1, MAX_STEPS)
        for name in ("height", "width"):
            if getattr(self, name) is not None:
                whole(f"The {name}", getattr(self, name), 8, MAX_SIDE)
        for name in ("guidance_scale", "image_guidance_scale"):
            if getattr(self, name) is not None:
                finite(f"The {name.replace('_', ' ')}", getattr(self, name), 0.0, 100.0)
        if self.negative_prompt is not None:
            text("The negative prompt", self.negative_prompt)
        if self.mask is not None and not isinstance(self.mask, Mapping):
            raise ValueError("The mask's settings must be a record of fields.")

    @classmethod
    def from_dict(cls, record: Mapping[str, Any] | None) -> CallDefaults:
        """The inverse of `to_dict`; ValueError that names unknown fields and wrong values."""
        return cls(**_known(cls, record or {}))

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without what is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """All of `pipeline.json`.

    base: hub id or folder of the base model that the weights were made for.
    scheduler: a name of `realcustom.pipelines.samplers.SCHEDULERS`; None is the base's or the folder's own.
    released_conditioning: of `RealCustomXLPipeline`.
    origin: what the weights are, for people.
    defaults: of calls.
    """

    base: str | None = None
    scheduler: str | None = None
    released_conditioning: bool = False
    origin: str | None = None
    defaults: CallDefaults = CallDefaults()

    def save(self, folder: Path) -> None:
        """Write `pipeline.json` into a folder."""
        record = {name: value for name, value in asdict(self).items() if value not in (None, False)}
        record["defaults"] = self.defaults.to_dict()
        (folder / SETTINGS).write_text(json.dumps(record, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> AdapterSettings:
        """What a folder's `pipeline.json` says; everything as by default where there is none.

        Raises:
            ValueError: it is no JSON record, or has unknown fields or wrong values.
        """
        path = folder / SETTINGS
        if not path.is_file():
            return cls()
        try:
            record = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged: it is no JSON.") from error
        try:
            known = _known(cls, record)
            return cls(**{**known, "defaults": CallDefaults.from_dict(known.get("defaults"))})
        except ValueError as error:
            raise ValueError(f"{path} cannot be used: {error}") from error


def _known(kind: type, record: Any) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise ValueError("it must be a record of fields.")
    names = {entry.name for entry in fields(kind)}
    for name in record:
        if name not in names:
            raise ValueError(f"'{name}' is no field of it; it has {', '.join(sorted(names))}.")
    return dict(record)

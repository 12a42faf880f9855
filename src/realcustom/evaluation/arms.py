"""Comparing ways to make the sticker benchmark's images: the same tasks, the same noise, one table.

Used by the paradox and by the ablations. Adapters that a variant needs are looked for in a folder with one subfolder a
variant (NAME/adapter or NAME/export/adapter); what was not trained is skipped with a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .generation import Setup, generate
from .judge import Judge
from .models import open_pipeline
from .sticker_figures import NAMES, References, difference
from .sticker_run import Arm, groups_of, measured
from .stickers import Sample


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A point of a comparison.

    name: of the point. family: the curve or block it belongs to. setup: how its images are made. adapter: the variant
    whose trained adapter it needs; None takes the model's own. against: the point it is compared with; None is the
    comparison's own base. prepare: changes the pipeline for this point and returns the function that changes it back.
    """

    name: str
    family: str
    setup: Setup
    adapter: str | None = None
    against: str | None = None
    prepare: Callable | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Comparison:
    """Arms in the order of their variants, and one sentence for every variant that could not be made."""

    variants: tuple[Variant, ...]
    arms: tuple[Arm, ...]
    skipped: tuple[str, ...]


class Pipelines:
    """The model with its own adapter and with those of the variants, one loaded at a time."""

    def __init__(self, model: str, adapter: str | None, variants: Path | None, device: str | None = None):
        self.model, self.adapter, self.variants, self.device = model, adapter, variants, device
        self._name: str | None = None
        self._pipe = None

    def folder(self, name: str) -> Path | None:
        """Where the adapter of a variant lies, or None."""
        if self.variants is None:
            return None
        places = (self.variants / name, self.variants / name / "export")
        return next((place for place in places if (place / "adapter").is_dir()), None)

    def get(self, name: str | None):
        """The pipeline with a variant's adapter, or with the model's own for None."""
        if self._pipe is None or name != self._name:
            source = self.adapter if name is None else str(self.folder(name))
            self._pipe, self._name = open_pipeline(self.model, source, self.device), name
        return self._pipe


def compare(
    variants: Sequence[Variant],
    pipelines: Pipelines,
    judge: Judge,
    made: Sequence[Sample],
    out: Path,
    done: Callable[[int], None] | None = None,
) -> Comparison:
    """Images of every variant that can be made, each in its own folder below `out`, measured."""
    references, tasks = References(judge, made), [sample.task for sample in made]
    kept, arms, skipped = [], [], []
    for variant in variants:
        if variant.adapter is not None and pipelines.folder(variant.adapter) is None:
            skipped.append(f"{variant.name}: skipped, there is no trained adapter {variant.adapter!r} in --variants.")
            continue
        pipe = pipelines.get(variant.adapter)
        if pipe.adapter is None and variant.setup.with_subjects:
            skipped.append(f"{variant.name}: skipped, the model has no adapter.")
            continue
        restore = None if variant.prepare is None else variant.prepare(pipe)
        try:
            started = len(arms) * len(tasks)
            step = None if done is None else lambda count, started=started: done(started + count)
            name = f"{pipelines.model}+{variant.adapter}"
            entries = generate(pipe, tasks, variant.setup, out / folder_name(variant.name), model=name, done=step)
        finally:
            if restore is not None:
                restore()
        kept.append(variant)
        arms.append(measured(judge, variant.name, made, references, entries))
    return Comparison(tuple(kept), tuple(arms), tuple(skipped))


def folder_name(name: str) -> str:
    """A variant's name as a folder."""
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in name).strip("-")


COLUMNS = ("similarity", "identity_judge", "identity_colour", "text", "scene", "copied")


def comparison_table(found: Comparison, columns: Sequence[str] = COLUMNS) -> list[list[str]]:
    """Header and one line a variant."""
    lines = [["", *[NAMES[name] for name in columns]]]
    for arm in found.arms:
        lines.append([arm.name, *[str(arm.figures[name]) if name in arm.figures else "-" for name in columns]])
    return lines


def difference_table(found: Comparison, made: Sequence[Sample], base: str) -> list[list[str]]:
    """Each variant against the base, or against the point it names, on the same tasks; only differences whose interval
    leaves out 0 are printed. A variant whose counterpart could not be made has no line."""
    arms = {arm.name: arm for arm in found.arms}
    columns = ("similarity", "identity_judge", "text", "scene", "copied", "mask_agreement")
    lines = [["point", "against", *[NAMES[name] for name in columns]]]
    for variant in found.variants:
        against = variant.against or base
        if against in arms and against != variant.name:
            one, other = arms[variant.name].values, arms[against].values
            pairs = [difference(one, other, name, groups_of(made)) for name in columns]
            lines.append([variant.name, against, *[shown(pair) for pair in pairs]])
    return lines


def shown(pair) -> str:
    """A difference that counts, or that it does not."""
    counts = pair.low == pair.low and (pair.low > 0 or pair.high < 0)
    return f"{pair.mean:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]" if counts else "within noise"


def comparison_results(found: Comparison, made: Sequence[Sample], about: dict) -> dict:
    """Plain JSON values of a comparison."""
    return {
        **about,
        "images": len(made),
        "skipped": list(found.skipped),
        "variants": [
            {
                "name": variant.name,
                "family": variant.family,
                "adapter": variant.adapter,
                "setup": variant.setup.describe(),
                "figures": {name: value.to_dict() for name, value in arm.figures.items()},
                "kid": None if arm.kid is None else arm.kid.to_dict(),
            }
            for variant, arm in zip(found.variants, found.arms, strict=True)
        ],
    }

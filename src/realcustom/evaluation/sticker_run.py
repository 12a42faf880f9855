"""A whole run of the sticker benchmark: the model, the same prompts without subjects, and the real composites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from . import report
from .generation import Made, Setup, generate, without_subjects, write_json
from .judge import Judge
from .masks import fitted, mask_report, plain_and_spread, table
from .metrics import Estimate
from .sticker_figures import NAMES, References, Values, difference, measure_stickers, quality, summary
from .stickers import Sample


@dataclass(frozen=True)
class Arm:
    """One way to make the benchmark's images, measured; kid is None for the real composites."""

    name: str
    values: list[Values]
    figures: dict[str, Estimate]
    kid: Estimate | None


def measured(judge: Judge, name: str, made: Sequence[Sample], references: References, entries: Sequence[Made]) -> Arm:
    """The arm of generated images."""
    images = [entry.image for entry in entries]
    values = measure_stickers(judge, made, images, references, [entry.masks for entry in entries])
    return Arm(name, values, summary(values, groups_of(made)), quality(judge, images, made))


def composites(judge: Judge, made: Sequence[Sample], references: References) -> Arm:
    """The arm of the real composites: what a perfect generator would reach with this judge."""
    images = [Image.fromarray(sample.record.image) for sample in made]
    values = measure_stickers(judge, made, images, references)
    return Arm("real composites", values, summary(values, groups_of(made)), None)


def groups_of(made: Sequence[Sample]) -> list[str]:
    return [sample.task.group for sample in made]


def run_stickers(
    pipe,
    judge: Judge,
    made: Sequence[Sample],
    setup: Setup,
    out: Path,
    *,
    about: dict,
    done: Callable[[int], None] | None = None,
) -> dict[str, list[list[str]]]:
    """Make what is missing, measure, write `out`/results.json and `out`/index.html.

    Returns:
        Title -> table, header first.
    """
    tasks, model = [sample.task for sample in made], str(about.get("model", ""))
    references = References(judge, made)
    entries = generate(pipe, tasks, setup, out / "images", model=model, done=done)
    plain_done = None if done is None else lambda count: done(len(tasks) + count)
    plain = generate(pipe, tasks, without_subjects(setup), out / "text-only", model=model, done=plain_done)
    arms = [
        measured(judge, "model", made, references, entries),
        measured(judge, "text only", made, references, plain),
        composites(judge, made, references),
    ]
    tables = {"stickers": arms_table(arms), **mask_tables(pipe, made)}
    drop = difference(arms[0].values, arms[1].values, "scene", groups_of(made))
    write_json(out / "results.json", results(made, setup, arms, drop, about))
    told = ", ".join(f"{name}: {value}" for name, value in about.items())
    parts = [f"<p>{told}</p>", *[report.table(lines, title) for title, lines in tables.items()]]
    parts.append(report.grid(entries, plain, "Reference, image, image under its last mask, and the same without it."))
    report.write_page(out / "index.html", report.page("realcustom: stickers", parts))
    return tables


def mask_tables(pipe, made: Sequence[Sample]) -> dict[str, list[list[str]]]:
    """Mask IoU on the noised composites of the samples with one subject and no style."""
    records = [sample.record for sample in made if sample.kind in ("scene", "accessory")][:32]
    if not records:
        return {}
    rows = mask_report(pipe, fitted(pipe, records), plain_and_spread(pipe.default_mask))
    return {"guidance mask against the truth, mean IoU on noised composites": table(rows)}


def arms_table(arms: Sequence[Arm]) -> list[list[str]]:
    """Header and one line a figure."""
    lines = [["figure", *[arm.name for arm in arms], "n"]]
    for name, shown in NAMES.items():
        counts = [arm.figures[name].count for arm in arms if name in arm.figures]
        if counts:
            cells = [str(arm.figures[name]) if name in arm.figures else "-" for arm in arms]
            lines.append([shown, *cells, str(max(counts))])
    kids = ["-" if arm.kid is None else str(arm.kid) for arm in arms]
    return [*lines, ["KID to the composites (judge's features)", *kids, str(len(arms[0].values))]]


def results(made: Sequence[Sample], setup: Setup, arms: Sequence[Arm], drop: Estimate, about: dict) -> dict:
    """Plain JSON values that do not depend on when or where the run was."""
    return {
        "benchmark": "stickers",
        "setup": setup.describe(),
        **about,
        "scene_minus_text_only": drop.to_dict(),
        "figures": {arm.name: {name: value.to_dict() for name, value in arm.figures.items()} for arm in arms},
        "kid": {arm.name: arm.kid.to_dict() for arm in arms if arm.kid is not None},
        "images": [
            {"key": sample.task.key, "prompt": sample.task.prompt, "facts": sample.task.facts}
            | {"values": {arm.name: finite(arm.values[place]) for arm in arms}}
            for place, sample in enumerate(made)
        ],
    }


def finite(values: Values) -> dict[str, float | None]:
    return {name: value if value == value else None for name, value in values.items()}

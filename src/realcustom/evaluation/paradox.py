"""The dual-optimum paradox, measured: similarity to the subject against control by the text, on one base model.

Pseudo-word methods trade one for the other along a curve; the claim of RealCustom is a point above all those curves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from realcustom.guidance.mask import NORMALISATIONS, RULES, MaskSettings, Updates

from .arms import Comparison, Pipelines, Variant, compare
from .benchmark import opened
from .generation import Setup, generate
from .judge import Judge
from .sticker_figures import References
from .sticker_run import Arm, measured
from .stickers import Sample
from .textual_inversion import InversionSettings, learn, placeholder, with_placeholder

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
SCOPES = (0.1, 0.25, 0.4, 0.6)
REGULARISATIONS = (0.0, 0.01, 0.1)
# A binary mask over the whole image is no mask: 1 everywhere, as in training.
UNMASKED = MaskSettings(scope=1.0, rule=RULES["top-share-binary"], spread=0, updates=Updates(until=1))
NAMES_WIDTH = 220  # pixels of the plot's column of names
FAMILIES = {
    "text only": (90, 90, 96),
    "Textual Inversion": (214, 120, 20),
    "unmasked injection": (190, 40, 60),
    "RealCustom": (40, 110, 210),
    "RealCustom++": (20, 140, 80),
}


def paradox_variants(setup: Setup, mask: MaskSettings) -> list[Variant]:
    """Everything but Textual Inversion, which learns something for every task first."""
    points = [Variant(name="text only", family="text only", setup=replace(setup, with_subjects=False))]
    for strength in STRENGTHS:
        changed = replace(setup, mask=UNMASKED, strength=strength)
        points.append(Variant(name=f"unmasked, strength {strength}", family="unmasked injection", setup=changed))
    eq13 = replace(
        setup,
        guidance_scale=7.5,
        image_guidance_scale=12.5,
        mask=replace(mask, spread=0, normalisation=NORMALISATIONS["max"]),
    )
    points.append(Variant(name="RealCustom, Eq. 13", family="RealCustom", setup=eq13, adapter="realcustom"))
    single = replace(
        setup, image_guidance_scale=None, mask=replace(mask, spread=0, normalisation=NORMALISATIONS["max"])
    )
    points.append(Variant(name="RealCustom, one scale", family="RealCustom", setup=single, adapter="realcustom"))
    for scope in SCOPES:
        changed = replace(setup, mask=replace(mask, scope=scope))
        points.append(Variant(name=f"RealCustom++, scope {scope}", family="RealCustom++", setup=changed))
    return points


def run_paradox(
    pipelines: Pipelines,
    judge: Judge,
    made: Sequence[Sample],
    setup: Setup,
    out: Path,
    *,
    inversion: InversionSettings | None,
    done: Callable[[int], None] | None = None,
) -> Comparison:
    """All points; inversion None leaves Textual Inversion out."""
    mask = setup.mask or pipelines.get(None).default_mask
    found = compare(paradox_variants(setup, mask), pipelines, judge, made, out, done)
    if inversion is None:
        return Comparison(found.variants, found.arms, (*found.skipped, "Textual Inversion: skipped as asked."))
    variants, arms = list(found.variants), list(found.arms)
    for weight in REGULARISATIONS:
        settings = replace(inversion, regularisation=weight)
        plain = replace(setup, with_subjects=False)
        variant = Variant(name=f"Textual Inversion, pull {weight}", family="Textual Inversion", setup=plain)
        variants.append(variant)
        arms.append(inverted(pipelines, judge, made, variant, settings, out))
    return Comparison(tuple(variants), tuple(arms), found.skipped)


def inverted(
    pipelines: Pipelines, judge: Judge, made: Sequence[Sample], variant: Variant, settings: InversionSettings, out: Path
) -> Arm:
    """Images with a learnt token in the place of each task's first word."""
    pipe, entries = pipelines.get(None), []
    folder = out / f"textual-inversion-{settings.regularisation}"
    for sample in made:
        subject = sample.task.subjects[0]
        task = replace(sample.task, prompt=with_placeholder(sample.task.prompt, subject.word), subjects=())
        name = f"{pipelines.model}+textual-inversion-{settings}"
        if not (folder / f"{task.key}.json").is_file():
            vector = learn(pipe, opened(subject.images[0]), subject.word, settings)
            with placeholder(pipe, vector):
                generate(pipe, [task], variant.setup, folder, model=name)
        entries += generate(pipe, [task], variant.setup, folder, model=name)
    return measured(judge, variant.name, made, References(judge, made), entries)


def verdict(found: Comparison, difference: Callable[[Arm, Arm, str], object]) -> str:
    """One honest sentence: does a masked point beat every unmasked one beyond the intervals, without losing to any?"""
    ours = [arm for v, arm in zip(found.variants, found.arms, strict=True) if v.family == "RealCustom++"]
    theirs = [arm for v, arm in zip(found.variants, found.arms, strict=True) if v.family == "unmasked injection"]
    if not ours or not theirs:
        return "Masked and unmasked injection could not both be made, so nothing can be said about the paradox."
    for arm in ours:
        gains = [[difference(arm, other, name) for name in ("similarity", "text")] for other in theirs]
        if all(max(pair.low for pair in pairs) > 0 and min(pair.high for pair in pairs) > 0 for pairs in gains):
            return (
                f"{arm.name} beats every unmasked strength in similarity or text control beyond the interval, and "
                "loses to none of them in the other."
            )
    return "No scope of RealCustom++ beats every unmasked strength beyond the intervals: the masks do not pay here."


def plot(found: Comparison, size: tuple[int, int] = (960, 640)) -> Image.Image:
    """Similarity (across) against text control (up), a point and its two intervals for each variant, RGB.

    The names stand in a column at the right, in the order of the points from top to bottom.
    """
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    points = [
        (variant, arm.figures["similarity"], arm.figures["text"])
        for variant, arm in zip(found.variants, found.arms, strict=True)
        if "similarity" in arm.figures and "text" in arm.figures
    ]
    if not points:
        draw.text((20, 20), "nothing was measured", fill="black")
        return picture
    place = _axes(draw, size, points)
    for family, colour in FAMILIES.items():
        own = [place(x.mean, y.mean) for variant, x, y in points if variant.family == family]
        if len(own) > 1:
            draw.line(own, fill=colour, width=2)
        for variant, x, y in points:
            if variant.family == family:
                _point(draw, place, x, y, colour)
    _names(draw, size, [(variant, place(x.mean, y.mean)) for variant, x, y in points])
    return picture


def _names(draw: ImageDraw.ImageDraw, size: tuple[int, int], points: Sequence[tuple[Variant, tuple]]) -> None:
    """Every point's name beside the plot, and a thin line to it; no two names meet."""
    ordered = sorted(points, key=lambda entry: (entry[1][1], -entry[1][0]))
    gap = min(24.0, (size[1] - 100) / len(ordered))
    wanted = sum(y for _, (_, y) in ordered) / len(ordered) - gap * (len(ordered) - 1) / 2
    top = max(30.0, min(wanted, size[1] - 70 - gap * (len(ordered) - 1)))
    font = ImageFont.load_default(13)
    for row, (variant, point) in enumerate(ordered):
        height, colour = top + row * gap, FAMILIES[variant.family]
        draw.line([point, (size[0] - NAMES_WIDTH + 12, height)], fill=tuple((c + 2 * 255) // 3 for c in colour))
        draw.text((size[0] - NAMES_WIDTH + 16, height), variant.name, fill=colour, font=font, anchor="lm")


def _axes(draw: ImageDraw.ImageDraw, size: tuple[int, int], points: Sequence) -> Callable:
    """Axes with labels; returns (similarity, text) -> pixel."""
    (left, top), (right, bottom) = (80, 30), (size[0] - NAMES_WIDTH - 20, size[1] - 70)
    ranges = []
    for values in zip(*[(x, y) for _, x, y in points], strict=True):
        ends = [v for e in values for v in (e.mean, e.low, e.high) if v == v]
        spread = max(max(ends) - min(ends), 0.02)
        ranges.append((min(ends) - 0.05 * spread, max(ends) + 0.05 * spread))
    (x0, x1), (y0, y1) = ranges

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - x0) / (x1 - x0) * (right - left), bottom - (y - y0) / (y1 - y0) * (bottom - top)

    draw.rectangle((left, top, right, bottom), outline=(160, 160, 165))
    for step in range(6):
        x, y = x0 + (x1 - x0) * step / 5, y0 + (y1 - y0) * step / 5
        draw.text((place(x, y0)[0] - 14, bottom + 6), f"{x:.2f}", fill="black")
        draw.text((left - 40, place(x0, y)[1] - 6), f"{y:.2f}", fill="black")
    draw.text((left + 120, bottom + 34), "similarity to the reference (judge's cosine, subject only)", fill="black")
    draw.text((left, top - 20), "text controllability (share of what the prompt asks that is seen)", fill="black")
    return place


def _point(draw: ImageDraw.ImageDraw, place: Callable, x, y, colour: tuple[int, int, int]) -> None:
    middle = place(x.mean, y.mean)
    if x.low == x.low:
        draw.line([place(x.low, y.mean), place(x.high, y.mean)], fill=colour)
    if y.low == y.low:
        draw.line([place(x.mean, y.low), place(x.mean, y.high)], fill=colour)
    draw.ellipse((middle[0] - 4, middle[1] - 4, middle[0] + 4, middle[1] + 4), fill=colour)

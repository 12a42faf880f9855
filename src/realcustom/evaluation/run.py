"""A whole run of a published benchmark: images, values, results.json, index.html and the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import published, report
from .benchmark import Benchmark
from .extractors import Extractors
from .generation import Made, Setup, generate, write_json
from .measure import figures, measure, results
from .metrics import Estimate

SHOWN_NAMES = {
    "clip_t": "CLIP-T",
    "clip_i": "CLIP-I",
    "dino_i": "DINO-I",
    "clip_i.segmented": "CLIP-I, segmented",
    "dino_i.segmented": "DINO-I, segmented",
    "clip_i.max": "CLIP-I, best subject",
    "clip_i.min": "CLIP-I, worst subject",
    "dino_i.max": "DINO-I, best subject",
    "dino_i.min": "DINO-I, worst subject",
}


def run_benchmark(
    pipe,
    benchmark: Benchmark,
    setup: Setup,
    extractors: Extractors,
    out: Path,
    *,
    about: dict,
    segment: Callable | None = None,
    done: Callable[[int], None] | None = None,
) -> list[list[str]]:
    """Make what is missing, measure all, write `out`/results.json and `out`/index.html.

    Args:
        about: plain JSON values for the results: model and extractors by name.
        segment: sharpens the guidance mask, see `measure`.
        done: called with the number of images after each.

    Returns:
        The table, header first.
    """
    made = generate(pipe, benchmark.tasks, setup, out / "images", model=str(about.get("model", "")), done=done)
    values = measure(made, extractors, segment)
    estimates = figures(made, values)
    lines = benchmark_table(estimates)
    write_json(out / "results.json", results(benchmark, setup, made, values, estimates, about))
    report.write_page(out / "index.html", benchmark_page(benchmark, made, lines, about))
    return lines


def benchmark_table(estimates: dict[str, Estimate]) -> list[list[str]]:
    """Header and one line a figure."""
    ordered = sorted(estimates.items(), key=_order)
    lines = [[SHOWN_NAMES.get(name, name), str(value), str(value.count)] for name, value in ordered]
    return [["figure", "mean [95 %]", "images"], *lines]


def benchmark_page(benchmark: Benchmark, made: list[Made], lines: list[list[str]], about: dict) -> str:
    """The HTML page; DreamBench gets the published numbers beside its own."""
    told = ", ".join(f"{name}: {value}" for name, value in {**about, **benchmark.protocol}.items())
    parts = [f"<p>{told}</p>", report.table(lines)]
    if benchmark.name == "dreambench":
        parts.append(report.table(published.dreambench_lines(), f"Published numbers, {published.SOURCE}.", True))
    parts.append(report.grid(made, names="References, image, image under its last mask."))
    return report.page(f"realcustom: {benchmark.name}", parts)


def _order(item: tuple[str, Estimate]) -> tuple[int, str]:
    names = list(SHOWN_NAMES)
    return (names.index(item[0]) if item[0] in names else len(names), item[0])

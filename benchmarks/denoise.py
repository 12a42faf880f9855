"""How fast an image is denoised: the released code's work against ours and our presets, in one process, step by step.

    python benchmarks/denoise.py --size medium --steps 25 --json medium.json

`plain` does per step what the release does (see plain.py); `exact` is ours with the same mask at every step and the
same result; `default` has our own mask, `fast` and `turbo` are the presets. They advance one step each in turn, so that
whatever else the machine does meets all of them alike. `ratio` is plain's time over theirs for a whole image, on the
clock and in CPU seconds of all threads; its spread is the 10th and 90th percentile over the steps' own ratios (for
presets: over the images of several rounds). `max_rel_diff` is the largest difference between the last latents of plain
and exact over the largest value. With --timed-steps only the first steps of plain, exact and default are made; an
image's seconds are then the first step's, which includes all that is done once, and for the others the median's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import torch
from memory import peak_memory
from plain import plain_denoise
from scenes import SIZES, Extent, Scene, build_scene

from realcustom.engine.presets import PRESETS, Preset, few_step_solver
from realcustom.guidance.guidance_scale import SingleScale
from realcustom.guidance.mask import MaskSettings
from realcustom.models.attention import VisualKeysValues
from realcustom.models.compiled import compile_blocks
from realcustom.models.unet import UNetBackbone
from realcustom.pipelines.denoise import Conditions, Sampling, denoise
from realcustom.pipelines.references import FixedReferences

SCALE, SCOPE = 3.5, 0.25
RECORDED = ("size", "steps", "timed_steps", "rounds", "dtype", "subjects", "images")


@dataclass
class Contender:
    """One way to make an image, and what it took.

    run: starts it; an iterator over the latents after each step.
    steps: of a whole image; fewer may be timed.
    seconds, cpu_seconds: of every step, by round; on the clock, and of all threads together.
    passes, calls: images that went through the U-Net, and its calls, in the last round.
    """

    run: Callable[[], Iterator[torch.Tensor]]
    steps: int
    seconds: list[list[float]] = field(default_factory=list)
    cpu_seconds: list[list[float]] = field(default_factory=list)
    passes: int = 0
    calls: int = 0
    processors: dict | None = None
    latents: torch.Tensor | None = None

    def image_seconds(self, rounds: list[list[float]] | None = None) -> list[float]:
        """Seconds of each round's image or batch of images, of `seconds` or `cpu_seconds`."""
        return [
            sum(steps) + max(0, self.steps - len(steps)) * statistics.median(steps[1:])
            for steps in (rounds or self.seconds)
        ]


def ours(scene: Scene, steps: int, preset: Preset, mask: MaskSettings) -> Iterator[torch.Tensor]:
    """Our denoising from reference features to latents, everything an image needs included."""
    scheduler = few_step_solver(scene.make_scheduler()) if preset.solver else scene.make_scheduler()
    steps = preset.steps or steps
    scheduler.set_timesteps(steps, device=scene.latents.device)
    positive = VisualKeysValues([(key[None], value[None]) for key, value in scene.adapter(scene.features)])
    zero = [(key[None], value[None]) for key, value in scene.adapter(scene.zero_features.select([0]))]
    conditions = Conditions(
        text=scene.text,
        negative=scene.negative,
        token_weights=scene.token_weights,
        strengths=torch.ones(scene.token_weights.shape[1], device=scene.latents.device),
        regions=None,
        references=FixedReferences(positive, VisualKeysValues(zero)),
    )
    guidance = SingleScale(SCALE, preset.guidance_interval)
    latents = scene.latents * scheduler.init_noise_sigma
    sampling = Sampling(scheduler=scheduler, steps=steps, timesteps=scheduler.timesteps, step_kwargs={})
    backbone = UNetBackbone(scene.unet)
    with backbone.installed():
        loop = denoise(backbone, sampling, latents, conditions, guidance, preset.mask(mask, steps))
        for step in loop:
            yield step.latents


def contenders_of(scene: Scene, steps: int, names: list[str]) -> dict[str, Contender]:
    """The contenders by name: `plain`; `exact` with plain's mask; `default`, `fast` and `turbo` with our own mask,
    which self-attention spreads."""
    released = MaskSettings(scope=SCOPE, spread=0)
    own = MaskSettings(scope=SCOPE)
    known = {
        "plain": lambda: plain_denoise(scene, steps, SCALE, SCOPE),
        "exact": lambda: ours(scene, steps, PRESETS["exact"], released),
        "default": lambda: ours(scene, steps, PRESETS["exact"], own),
        "fast": lambda: ours(scene, steps, PRESETS["fast"], own),
        "turbo": lambda: ours(scene, steps, PRESETS["turbo"], own),
    }
    return {name: Contender(known[name], PRESETS.get(name, PRESETS["exact"]).steps or steps) for name in names}


@contextmanager
def turn_of(unet, contender: Contender) -> Iterator[None]:
    """The U-Net as the contender left it, with its passes counted; as it was before for the next one."""
    own = dict(unet.attn_processors)
    if contender.processors:
        unet.set_attn_processor(dict(contender.processors))

    def count(module, arguments) -> None:
        contender.calls += 1
        contender.passes += arguments[0].shape[0]

    handle = unet.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()
        contender.processors = dict(unet.attn_processors)
        unet.set_attn_processor(own)


def alternate(scene: Scene, contenders: dict[str, Contender], timed_steps: int | None = None) -> None:
    """One image of each, step by step in turn, or of those that have more steps the first ones; adds a round to each
    contender's seconds."""
    running = {name: contender.run() for name, contender in contenders.items()}
    presets = [name for name in contenders if name in PRESETS and PRESETS[name].steps]
    for contender in contenders.values():
        contender.seconds.append([])
        contender.cpu_seconds.append([])
        contender.processors, contender.calls, contender.passes = None, 0, 0
    while running:
        for name in list(running):
            contender = contenders[name]
            with turn_of(scene.unet, contender):
                start, cpu_start = time.perf_counter(), time.process_time()
                latents = next(running[name])
                synchronize(scene.latents.device)
                seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
                contender.seconds[-1].append(seconds)
                contender.cpu_seconds[-1].append(cpu_seconds)
                contender.latents = latents
                most = contender.steps if name in presets else timed_steps or contender.steps
                if len(contender.seconds[-1]) == most:
                    running.pop(name).close()


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def one_step(contender: Contender) -> None:
    """The first step of an image, with all that goes before it."""
    steps = contender.run()
    next(steps)
    steps.close()


def summary(contenders: dict[str, Contender], images: int) -> dict[str, dict]:
    """Per contender passes, seconds an image, and the ratio to plain with its spread."""
    plain = contenders["plain"]
    plain_seconds, plain_cpu = plain.image_seconds(), plain.image_seconds(plain.cpu_seconds)
    table = {}
    for name, contender in contenders.items():
        cpu = contender.image_seconds(contender.cpu_seconds)
        ratios = [own / other for own, other in zip(plain_seconds, contender.image_seconds(), strict=True)]
        if len(contender.seconds[0]) == len(plain.seconds[0]):
            # The same steps side by side: their own ratios show the spread.
            spread = [
                own / other
                for rounds in zip(plain.seconds, contender.seconds, strict=True)
                for own, other in zip(*rounds, strict=True)
            ]
        else:
            spread = ratios
        table[name] = {
            "calls": contender.calls * contender.steps // len(contender.seconds[-1]),
            "passes": contender.passes * contender.steps // len(contender.seconds[-1]),
            "seconds_per_image": statistics.median(contender.image_seconds()) / images,
            "cpu_seconds_per_image": statistics.median(cpu) / images,
            "ratio": statistics.median(ratios),
            "ratio_cpu": statistics.median(own / other for own, other in zip(plain_cpu, cpu, strict=True)),
            "ratio_low": percentile(spread, 0.1),
            "ratio_high": percentile(spread, 0.9),
        }
    return table


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of the others lie below."""
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def time_parts(scene: Scene) -> dict[str, float]:
    """Seconds of what an image needs besides the denoising, each the second of two runs."""
    seconds = {}
    for name, part in scene.parts.items():
        part()
        start = time.perf_counter()
        part()
        synchronize(scene.latents.device)
        seconds[name] = time.perf_counter() - start
    return seconds


def growth(size: str, device: torch.device, dtype: torch.dtype) -> list[dict]:
    """Seconds of one step of ours when one thing grows: image size, subjects, images a prompt; and of whole images by
    the number of steps."""
    side = build_scene(size, Extent(), device, dtype).latents.shape[-1]
    extents = [Extent(latent_size=(n, n)) for n in (side, side * 3 // 2, side * 2)]
    extents += [Extent(subjects=n) for n in (2, 3, 4)] + [Extent(images=n) for n in (2, 4, 8)]
    rows = []
    for extent in extents:
        scene = build_scene(size, extent, device, dtype)
        contender = contenders_of(scene, 25, ["exact"])["exact"]
        steps = contender.run()
        next(steps)
        start = time.perf_counter()
        for _ in range(2):
            next(steps)
        synchronize(device)
        steps.close()
        rows.append({**asdict(extent), "seconds_per_step": (time.perf_counter() - start) / 2})
    return rows


def machine(device: torch.device) -> dict:
    """Where this ran."""
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {"chip": chip, "threads": torch.get_num_threads(), "torch": torch.__version__, "date": str(date.today())}


def processor_name() -> str:
    """The CPU's name as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def measure(options: argparse.Namespace) -> dict:
    """Everything the command reports."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    extent = Extent(subjects=options.subjects, images=options.images)
    scene = build_scene(options.size, extent, device, dtype)
    if options.compile:
        compile_blocks(scene.unet)
    contenders = contenders_of(scene, options.steps, ["plain", "exact", *options.others])
    for contender in contenders.values():
        one_step(contender)
    for _ in range(options.rounds):
        alternate(scene, contenders, options.timed_steps)
    table = summary(contenders, options.images)
    for name in ("plain", "exact"):
        contender = contenders[name]
        table[name]["peak_memory_mib"] = peak_memory(lambda contender=contender: one_step(contender), device)
    report = {
        **{name: getattr(options, name) for name in RECORDED},
        "compiled": options.compile,
        "machine": machine(device),
        "ratio_exact": table["exact"]["ratio"],
        "max_rel_diff": relative_difference(contenders["exact"].latents, contenders["plain"].latents),
        "contenders": table,
        "seconds_of_parts": time_parts(scene),
    }
    if options.growth:
        report["growth"] = growth(options.size, device, dtype)
    return report


def show(report: dict) -> None:
    """The report as a table."""
    where = report["machine"]
    print(f"{report['size']}, {report['steps']} steps, {report['dtype']}; {where['chip']}, {where['threads']} threads")
    print(f"{'':10}{'calls':>7}{'passes':>8}{'s/image':>10}{'ratio':>8}{'spread':>16}{'CPU s':>9}{'ratio':>7}")
    for name, row in report["contenders"].items():
        spread = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        print(
            f"{name:10}{row['calls']:7}{row['passes']:8}{row['seconds_per_image']:10.3f}{row['ratio']:8.2f}"
            f"{spread:>16}{row['cpu_seconds_per_image']:9.2f}{row['ratio_cpu']:7.2f}"
        )
    peaks = [f"{name} {report['contenders'][name]['peak_memory_mib']:.0f} MiB" for name in ("plain", "exact")]
    print(f"peak memory above what is there before a step: {', '.join(peaks)}")
    print(f"largest relative difference of plain and exact: {report['max_rel_diff']:.1e}")
    for name, seconds in report["seconds_of_parts"].items():
        print(f"{name}: {seconds:.3f} s")
    for row in report.get("growth", []):
        print(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="miniature")
    parser.add_argument("--steps", type=int, default=25, help="of plain and exact; presets have their own")
    parser.add_argument("--rounds", type=int, default=1, help="images of each contender")
    parser.add_argument("--timed-steps", type=int, help="make only so many of them (at least 2)")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--others", nargs="*", default=["default", "fast", "turbo"], help="besides plain and exact")
    parser.add_argument("--subjects", type=int, default=1)
    parser.add_argument("--images", type=int, default=1, help="images of the prompt made at once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--compile", action="store_true", help="transformer blocks through torch.compile")
    parser.add_argument("--growth", action="store_true", help="also how the cost of a step grows")
    options = parser.parse_args()
    if options.size == "sdxl" and options.device == "cpu":
        parser.error("SDXL's real size wants a GPU; --size medium is for CPUs.")
    with torch.no_grad():
        report = measure(options)
    show(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""`realcustom evaluate`: how good a model is, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from realcustom.cli import evaluate_published
from realcustom.cli.console import quiet, status
from realcustom.cli.evaluate_options import (
    Adapter,
    Device,
    ImageScale,
    Model,
    Out,
    Scale,
    Seed,
    Steps,
    Subjects,
    Variants,
    held_out_world,
    image_bar,
    show,
)

app = typer.Typer(help="Measure models: benchmarks, masks, the paradox, ablations.", no_args_is_help=False)
app.command()(evaluate_published.dreambench)
app.command()(evaluate_published.dreambench_pairs)
app.command()(evaluate_published.msbench)
app.command()(evaluate_published.folder)


@app.callback()
def evaluate() -> None:
    """Measure models: benchmarks, masks, the paradox, ablations."""


@app.command()
def judge(
    subjects: Subjects = None,
    count: Annotated[int, typer.Option(min=10, help="Pictures of each kind.")] = 400,
    weights: Annotated[Path | None, typer.Option(help="Folder of another judge; the bundled one.")] = None,
) -> None:
    """Validate the sticker judge on real composites of identities it has never seen."""
    world = held_out_world(subjects)
    quiet()
    with status("Looking ..."):
        from realcustom.evaluation.judge import WEIGHTS, Judge
        from realcustom.evaluation.judge_report import validate_judge

        report = validate_judge(Judge.load(weights or WEIGHTS), world, count)
    rows = [[name, str(value), str(value.count)] for name, value in report.items()]
    show("The judge on real composites, held-out identities", [["figure", "value [95 %]", "n"], *rows])


@app.command()
def autoencoder(
    model: Annotated[str, typer.Option(help="A bundled model, a model's folder, or an autoencoder's.")] = "miniature",
    subjects: Subjects = None,
    count: Annotated[int, typer.Option(min=2, help="Pictures without style, for the PSNR.")] = 200,
    limit: Annotated[int, typer.Option(min=8, help="Composites of the sticker benchmark, for the judge.")] = 272,
    weights: Annotated[Path | None, typer.Option(help="Folder of another judge; the bundled one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for grid and results; outputs/autoencoder-figures.")] = None,
    device: Device = None,
) -> None:
    """What an autoencoder keeps of real composites: PSNR, and the judge's figures behind encode and decode."""
    world = held_out_world(subjects)
    quiet()
    with status("Encoding and decoding ..."):
        from realcustom.evaluation import autoencoder as module
        from realcustom.evaluation.generation import write_json
        from realcustom.evaluation.judge import WEIGHTS, Judge
        from realcustom.evaluation.stickers import samples
        from realcustom.training.logs import save_picture

        vae = module.load_autoencoder(model)
        vae = vae if device is None else vae.to(device)
        records = module.plain_records(world, count)
        figures = module.fidelity(vae, records)
        rows = module.behind(vae, Judge.load(weights or WEIGHTS), samples(world, limit))
        out = out or Path("outputs/autoencoder-figures")
        write_json(out / "results.json", {"model": model, **module.results(figures, rows)})
        save_picture(out / "grid.png", module.shown_grid(vae, records))
    show(f"Pictures without style behind the autoencoder: {model}", module.fidelity_table(figures))
    show(f"The judge's figures of {limit} real composites: {model}", module.behind_table(rows))
    typer.echo(out / "grid.png")
    typer.echo(out / "results.json")


@app.command()
def masks(
    model: Model = "miniature",
    adapter: Adapter = None,
    subjects: Subjects = None,
    limit: Annotated[int, typer.Option(min=1, help="How many composites.")] = 200,
    sweep: Annotated[bool, typer.Option("--sweep", help="Every choice of levels, spread and normalisation.")] = False,
    device: Device = None,
) -> None:
    """Mean IoU of the guidance mask with the true subject, on noised composites of held-out identities."""
    world = held_out_world(subjects)
    quiet()
    with status("Measuring masks ..."):
        from realcustom.evaluation import masks as module
        from realcustom.evaluation.models import open_pipeline

        pipe = open_pipeline(model, adapter, device)
        records = module.fitted(pipe, module.held_out_records(world, limit))
        settings = pipe.default_mask
        variants = module.sweep(pipe.backbone(), settings) if sweep else module.plain_and_spread(settings)
        rows = module.mask_report(pipe, records, variants)
    if sweep:
        rows.sort(key=lambda row: sum(value.mean for value in row.grid.values()), reverse=True)
    show(f"Guidance mask against the true subject, mean IoU [95 %], {limit} composites", module.table(rows))


@app.command()
def stickers(
    model: Model = "miniature",
    adapter: Adapter = None,
    subjects: Subjects = None,
    limit: Annotated[int, typer.Option(min=8, help="How many images.")] = 200,
    steps: Steps = 25,
    guidance_scale: Scale = None,
    image_guidance_scale: ImageScale = None,
    mask_scope: Annotated[float | None, typer.Option(help="Share of the image a subject may fill.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of another judge; the bundled one.")] = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """The sticker benchmark: held-out identities in contexts, accessories, colours, styles, companions and pairs."""
    world = held_out_world(subjects)
    quiet()
    from dataclasses import replace

    from realcustom.evaluation.generation import Setup
    from realcustom.evaluation.judge import WEIGHTS, Judge
    from realcustom.evaluation.models import open_pipeline
    from realcustom.evaluation.sticker_run import run_stickers
    from realcustom.evaluation.stickers import samples

    judge = Judge.load(weights or WEIGHTS)
    pipe = open_pipeline(model, adapter, device)
    mask = pipe.default_mask if mask_scope is None else replace(pipe.default_mask, scope=mask_scope)
    setup = Setup(steps=steps, guidance_scale=guidance_scale, image_guidance_scale=image_guidance_scale, mask=mask)
    made = samples(world, limit, seed)
    about = {"model": model, "adapter": adapter, "images": limit, "seed": seed}
    out = out or Path("outputs/stickers")
    with image_bar("stickers", 2 * len(made)) as done:
        tables = run_stickers(pipe, judge, made, setup, out, about=about, done=done)
    for title, lines in tables.items():
        show(f"{title}: {model}, {limit} images, seed {seed}", lines)
    typer.echo(out / "results.json")
    typer.echo(out / "index.html")


@app.command()
def holes(
    model: Model = "miniature",
    adapter: Adapter = None,
    subjects: Subjects = None,
    limit: Annotated[int, typer.Option(min=2, help="How many cases; each is two images.")] = 64,
    steps: Steps = 25,
    guidance_scale: Scale = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of another judge; the bundled one.")] = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """Held-out identities in a hole of a drawn scene, against the same words drawn freely."""
    world = held_out_world(subjects)
    quiet()
    from realcustom.evaluation.generation import Setup
    from realcustom.evaluation.holes import hole_samples, run_holes
    from realcustom.evaluation.judge import WEIGHTS, Judge
    from realcustom.evaluation.models import open_pipeline

    judge = Judge.load(weights or WEIGHTS)
    pipe = open_pipeline(model, adapter, device)
    made, out = hole_samples(world, limit, seed), out or Path("outputs/holes")
    about = {"model": model, "adapter": adapter, "cases": limit, "seed": seed}
    setup = Setup(steps=steps, guidance_scale=guidance_scale)
    with image_bar("holes", 2 * len(made)) as done:
        lines = run_holes(pipe, judge, made, setup, out, about=about, done=done)
    show(f"In a hole against freely: {model}, {limit} cases, {steps} steps, seed {seed}", lines)
    typer.echo(out / "results.json")


@app.command()
def paradox(
    model: Model = "miniature",
    adapter: Adapter = None,
    variants: Variants = None,
    subjects: Subjects = None,
    limit: Annotated[int, typer.Option(min=8, help="How many images of each point.")] = 48,
    steps: Steps = 25,
    guidance_scale: Scale = None,
    image_guidance_scale: ImageScale = None,
    inversion_steps: Annotated[int, typer.Option(min=0, help="Textual Inversion's steps; 0 leaves it out.")] = 200,
    weights: Annotated[Path | None, typer.Option(help="Folder of another judge; the bundled one.")] = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """Similarity against text control: Textual Inversion, unmasked injection, RealCustom, RealCustom++."""
    world = held_out_world(subjects)
    quiet()
    from realcustom.evaluation import arms
    from realcustom.evaluation import paradox as module
    from realcustom.evaluation.generation import Setup, write_json
    from realcustom.evaluation.judge import WEIGHTS, Judge
    from realcustom.evaluation.sticker_figures import difference
    from realcustom.evaluation.stickers import samples
    from realcustom.evaluation.textual_inversion import InversionSettings
    from realcustom.pictures.png import write_png

    judge = Judge.load(weights or WEIGHTS)
    pipelines = arms.Pipelines(model, adapter, variants, device)
    mask = pipelines.get(None).default_mask
    setup = Setup(steps=steps, guidance_scale=guidance_scale, image_guidance_scale=image_guidance_scale, mask=mask)
    made, out = samples(world, limit, seed), out or Path("outputs/paradox")
    inversion = InversionSettings(steps=inversion_steps) if inversion_steps else None
    with image_bar("paradox", len(made) * len(module.paradox_variants(setup, setup.mask))) as done:
        found = module.run_paradox(pipelines, judge, made, setup, out, inversion=inversion, done=done)
    groups = [sample.task.group for sample in made]
    told = module.verdict(found, lambda one, other, name: difference(one.values, other.values, name, groups))
    about = {"comparison": "paradox", "model": model, "seed": seed, "verdict": told}
    write_json(out / "results.json", arms.comparison_results(found, made, about))
    write_png(out / "paradox.png", module.plot(found))
    show(f"The paradox: {model}, {limit} images a point, seed {seed}", arms.comparison_table(found))
    for line in (*found.skipped, told, out / "paradox.png", out / "results.json"):
        typer.echo(line)


@app.command()
def ablations(
    model: Model = "miniature",
    adapter: Adapter = None,
    variants: Variants = None,
    subjects: Subjects = None,
    limit: Annotated[int, typer.Option(min=8, help="How many images of each point.")] = 48,
    steps: Steps = 25,
    guidance_scale: Scale = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this family (scope, spread ...); repeatable.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of another judge; the bundled one.")] = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """The papers' ablations, one thing at a time: mask, steps, scoring, gamma_num, projector, training; presets."""
    world = held_out_world(subjects)
    quiet()
    from realcustom.evaluation import ablations as module
    from realcustom.evaluation import arms
    from realcustom.evaluation.generation import Setup, write_json
    from realcustom.evaluation.judge import WEIGHTS, Judge
    from realcustom.evaluation.stickers import samples

    judge = Judge.load(weights or WEIGHTS)
    pipelines = arms.Pipelines(model, adapter, variants, device)
    setup = Setup(steps=steps, guidance_scale=guidance_scale)
    points = module.ablations(setup, pipelines.get(None).default_mask)
    families = {point.family for point in points}
    if only and not set(only) <= families:
        raise ValueError(f"There are the families {', '.join(sorted(families))}, not {', '.join(only)}.")
    points = [point for point in points if not only or point.family in (*only, "default")]
    made, out = samples(world, limit, seed), out or Path("outputs/ablations")
    with image_bar("ablations", len(made) * len(points)) as done:
        found = arms.compare(points, pipelines, judge, made, out, done)
    write_json(out / "results.json", arms.comparison_results(found, made, {"comparison": "ablations", "model": model}))
    show(f"Ablations: {model}, {limit} images a point, seed {seed}", arms.comparison_table(found))
    show("Only what exceeds its 95 % interval", arms.difference_table(found, made, module.DEFAULT))
    for line in (*found.skipped, out / "results.json"):
        typer.echo(line)

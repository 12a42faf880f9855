"""The miniature's RealCustom++ adapter: cross-layer cross-scale projector and curriculum; the base is frozen."""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from accelerate import PartialState
from PIL import Image

from realcustom.data.world import StickerWorld, WorldSettings
from realcustom.miniature.builders import build_adapter
from realcustom.miniature.world import NARROW
from realcustom.training.config import CheckpointSettings, OptimizerSettings, Parts, TrainConfig, hold_and_decay
from realcustom.training.curriculum import Curriculum, reconstruction_only
from realcustom.training.latents import CacheSettings, cache_latents
from realcustom.training.miniature import AdapterRun, adapter_parts
from realcustom.training.objective import DrawTimesteps, logit_normal_timesteps, noisier_timesteps
from realcustom.training.optimizers import muon
from realcustom.training.precision import quick_precision
from realcustom.training.stickers import StickerPairs

SUBJECTS = Path(os.environ.get("REALCUSTOM_SUBJECTS", "subjects"))
# Against the base's, more of what tells individuals apart: most have a pattern or colours without a name. Named colours
# alone make few enough individuals to be remembered instead of read.
WORLD = replace(
    NARROW,
    unnamed=0.7,
    colour_word=0.16,
    repaint=0.6,
    patterned=0.5,
    natural=0.2,
    accessory=0.4,
    companion=0.25,
)
FIRST = 6_000_000  # of its records; the base learns from the first ones
OUTSIDE = 0.15  # weight of the error outside the subject
POOLED = ((16, 6.0), (4, 3.0))  # weights of the subject's mean error, and of that of its blocks of 4 x 4 cells
PRESENCE = 0.7  # of the reference in training; the guidance mask leaves about three quarters inside a subject


@dataclass(frozen=True)
class Noise:
    """draw: of the timesteps. offset: spread of the noise's offset within the subject."""

    draw: DrawTimesteps
    offset: float


# The colours are decided at high noise, parts and patterns in the middle. Where the noisy latents show the subject, an
# offset would teach the network to disbelieve what it has drawn.
COLOURS = Noise(partial(noisier_timesteps, power=4.0), offset=0.2)
DRAWING = Noise(partial(logit_normal_timesteps, mean=0.3), offset=0.0)
EXAMPLES = (
    ("a dog on the beach", "dog"),
    ("a cat in the forest", "cat"),
    ("a car on a city street", "car"),
    ("a teddy bear in space", "teddy bear"),
    ("a penguin wearing a hat in the snow", "penguin"),
    ("a rabbit in the desert", "rabbit"),
    ("a robot in a meadow", "robot"),
    ("a dinosaur in the mountains", "dinosaur"),
)


def recipe(
    out: Path = Path("outputs/adapter"),
    base: Path = Path("outputs/base/export"),
    cache: Path = Path("outputs/adapter-latents"),
    subjects: Path = SUBJECTS,
    start: str = "",
    encoder: str = "",
    seen: int = 0,
    samples: int = 0,
    count: int = 100_000,
    steps: int = 16_000,
    batch_size: int = 16,
    learning_rate: float = 4e-4,
    drawing: bool = False,
    reconstruction: bool = False,
    projector: str = "cross-layer-cross-scale",
    workers: int = 2,
    compile: bool = False,
    seed: int = 0,
) -> TrainConfig:
    """About 250,000 samples on a latent cache of its own, which is filled first, by `workers` processes.

    `start` is the exported folder of recipes/miniature_encoder.py, or of an earlier run to go on from, which has `seen`
    so many samples already; `samples` is the length of all runs together, which the curriculum needs to know (0: it
    ends with this run). `encoder` is an exported folder whose reference encoder is taken and stays frozen.
    `drawing` is the second part of the training: noise for parts and patterns instead of colours.
    Two ablations: `reconstruction`, whose reference is always the picture itself, and a new adapter (no `start`) with
    another `projector`, deep or shallow. `compile` needs a C++ compiler and makes the training a tenth faster.
    """
    run = AdapterRun(
        base=base,
        cache=cache,
        count=count,
        samples=samples or seen + steps * batch_size,
        curriculum=reconstruction_only() if reconstruction else Curriculum(),
        start=start,
        encoder=encoder,
        seen=seen,
        seed=seed,
    )
    return TrainConfig(
        name="miniature-adapter",
        out=out,
        build=partial(build, run, subjects, projector, workers, DRAWING if drawing else COLOURS),
        steps=steps,
        batch_size=batch_size,
        precision=quick_precision(),
        ema_decay=0.999,
        optimizer=OptimizerSettings(
            learning_rate=learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            schedule=partial(hold_and_decay, warmup=200, decay=0.5, floor=0.05),
            build=muon,
        ),
        checkpoint=CheckpointSettings(every_minutes=8),
        log_every=50,
        sample_every=1000,
        compile=("unet", "reference_encoder") if compile else (),
        seed=seed,
    )


def build(run: AdapterRun, subjects: Path, projector: str, workers: int, noise: Noise) -> Parts:
    """The sample grids show held-out identities."""
    with PartialState().main_process_first():
        settings = CacheSettings(count=run.count, references=True, first=FIRST, workers=workers)
        cache_latents(StickerPairs(subjects, WORLD), Path(run.base) / "vae", run.cache, settings)
    world = StickerWorld(subjects, WorldSettings(split="held-out", plain_reference=1.0))
    run = AdapterRun(
        **{**vars(run), "examples": [(prompt, word, reference_of(world, word)) for prompt, word in EXAMPLES]}
    )
    new = partial(build_adapter, projector=projector)
    areas = {"outside": OUTSIDE, "pooled": POOLED, "offset": noise.offset}
    # Min-SNR weights would leave high noise nearly none.
    return adapter_parts(run, new, min_snr=None, draw=noise.draw, presence=PRESENCE, **areas)


def reference_of(world: StickerWorld, word: str) -> Image.Image:
    """A held-out identity of a word, always the same."""
    import random

    rng = random.Random(f"examples-{word}")
    return Image.fromarray(world.reference(world.identity(rng, word), rng))

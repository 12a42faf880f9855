"""The miniature's RealCustom (CVPR 2024) adapter: plain projector, scoring module, reference = the picture itself."""

from functools import partial
from pathlib import Path

from realcustom.miniature.builders import build_scoring_adapter
from realcustom.training.config import CheckpointSettings, OptimizerSettings, TrainConfig, hold_and_decay
from realcustom.training.curriculum import Curriculum, reconstruction_only
from realcustom.training.miniature import AdapterRun, adapter_parts
from realcustom.training.objective import noisier_timesteps
from realcustom.training.precision import quick_precision


def recipe(
    out: Path = Path("outputs/realcustom"),
    base: Path = Path("outputs/base/export"),
    cache: Path = Path("outputs/latents"),
    start: str = "",
    encoder: str = "",
    count: int = 100_000,
    steps: int = 16_000,
    batch_size: int = 16,
    learning_rate: float = 4e-4,
    curriculum: bool = False,
    seed: int = 0,
) -> TrainConfig:
    """About 250,000 samples; `curriculum` gives this adapter the curriculum of RealCustom++ for comparison.

    `encoder` is an exported folder (of recipes/miniature_encoder.py, say) whose reference encoder stays frozen.
    """
    run = AdapterRun(
        base=base,
        cache=cache,
        count=count,
        samples=steps * batch_size,
        curriculum=Curriculum() if curriculum else reconstruction_only(),
        start=start,
        encoder=encoder,
        seed=seed,
    )
    return TrainConfig(
        name="miniature-realcustom",
        out=out,
        build=partial(
            adapter_parts,
            run,
            build_scoring_adapter,
            min_snr=None,
            draw=partial(noisier_timesteps, power=3.0),
            outside=0.15,
            pooled=((16, 6.0), (4, 3.0)),
        ),
        steps=steps,
        batch_size=batch_size,
        precision=quick_precision(),
        ema_decay=0.999,
        optimizer=OptimizerSettings(
            learning_rate=learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            schedule=partial(hold_and_decay, warmup=200, decay=0.5, floor=0.05),
        ),
        checkpoint=CheckpointSettings(every_minutes=8),
        seed=seed,
    )

"""The sticker judge of `realcustom evaluate`, trained on identities that its figures are never measured on."""

import os
from functools import partial
from pathlib import Path

from realcustom.evaluation.judge_network import StickerJudge
from realcustom.evaluation.judge_training import JudgeLoss, JudgeRecords, export_judge
from realcustom.training.config import CheckpointSettings, OptimizerSettings, Parts, TrainConfig, hold_and_decay
from realcustom.training.feeding import feed_batches
from realcustom.training.precision import quick_precision

SUBJECTS = Path(os.environ.get("REALCUSTOM_SUBJECTS", "subjects"))


def recipe(
    out: Path = Path("outputs/judge"),
    subjects: Path = SUBJECTS,
    steps: int = 6000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    workers: int = 1,
    seed: int = 0,
) -> TrainConfig:
    """About 384,000 pictures; the export belongs in src/realcustom/evaluation/judge_weights."""
    return TrainConfig(
        name="judge",
        out=out,
        build=partial(build, subjects, workers),
        steps=steps,
        batch_size=batch_size,
        precision=quick_precision(),
        ema_decay=0.995,
        optimizer=OptimizerSettings(
            learning_rate=learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.02,
            schedule=partial(hold_and_decay, warmup=100, decay=0.5, floor=0.02),
        ),
        checkpoint=CheckpointSettings(every_minutes=3),
        log_every=50,
        seed=seed,
    )


def build(subjects: Path, workers: int) -> Parts:
    """The judge's own networks, from random weights."""
    return Parts(
        trained={"judge": StickerJudge()},
        loss=JudgeLoss(),
        data=partial(feed_batches, source=JudgeRecords(subjects), workers=workers),
        export=export_judge,
    )

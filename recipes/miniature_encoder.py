"""The miniature's reference encoders and projector, on how subjects look: what pretrained backbones bring along."""

import os
from functools import partial
from pathlib import Path

from realcustom.data.world import WorldSettings
from realcustom.miniature.builders import build_adapter
from realcustom.training.adapter import export_adapter
from realcustom.training.appearance import Appearances, appearance_heads, appearance_loss
from realcustom.training.config import CheckpointSettings, OptimizerSettings, Parts, TrainConfig, hold_and_decay
from realcustom.training.feeding import feed_batches
from realcustom.training.miniature import load_base, start_networks
from realcustom.training.precision import quick_precision

SUBJECTS = Path(os.environ.get("REALCUSTOM_SUBJECTS", "subjects"))
# Nothing that makes a subject look other than its reference.
WORLD = WorldSettings(
    accessory=0.0,
    style=0.0,
    companion=0.0,
    repaint=0.0,
    two_subjects=0.0,
    plain_reference=0.5,
    turn=16.0,
    mirrored=0.05,
    area=(0.2, 0.5),
)


def recipe(
    out: Path = Path("outputs/encoder"),
    base: Path = Path("outputs/base/export"),
    subjects: Path = SUBJECTS,
    start: str = "",
    steps: int = 3800,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    workers: int = 1,
    seed: int = 0,
) -> TrainConfig:
    """About 120,000 references. `start` is an earlier export of this recipe or of the adapter's."""
    return TrainConfig(
        name="miniature-encoder",
        out=out,
        build=partial(build, base, subjects, start, workers),
        steps=steps,
        batch_size=batch_size,
        precision=quick_precision(),
        ema_decay=0.995,
        optimizer=OptimizerSettings(
            learning_rate=learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            schedule=partial(hold_and_decay, warmup=200, decay=0.4, floor=0.02),
        ),
        checkpoint=CheckpointSettings(every_minutes=5),
        log_every=50,
        seed=seed,
    )


def build(base: Path, subjects: Path, start: str, workers: int) -> Parts:
    """The export is an adapter's, with keys and values as they were: the start of recipes/miniature_adapter.py."""
    adapter, encoder = start_networks(load_base(base)["unet"], build_adapter, start)
    # Several processes wait for a gradient of every weight that is trained; these get none.
    for unused in (adapter.to_k, adapter.to_v):
        unused.requires_grad_(False)
    return Parts(
        trained={"adapter": adapter, "reference_encoder": encoder, "heads": appearance_heads(adapter)},
        loss=appearance_loss,
        data=partial(feed_batches, source=Appearances(subjects, WORLD), workers=workers),
        export=export_adapter,
    )

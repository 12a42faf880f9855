"""The papers' ablations on the sticker benchmark: each point differs from the default in one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from realcustom.engine.presets import PRESETS
from realcustom.guidance.mask import RULES, MaskSettings, Updates

from .arms import Variant
from .generation import Setup

DEFAULT = "default"
EQUALS = "curriculum and both projectors, trained as long as the others"
SCORING = "scoring full"


def ablations(setup: Setup, mask: MaskSettings) -> list[Variant]:
    """The default first; then scope, binary mask, spread, early stop, interval, steps, scoring, gamma_num, projector,
    training and presets. What needs training of its own is compared with what was trained as long (`plus`)."""
    base = replace(setup, mask=mask)

    def masked(name: str, family: str, **changes) -> Variant:
        return Variant(name=name, family=family, setup=replace(base, mask=replace(mask, **changes)))

    points = [Variant(name=DEFAULT, family="default", setup=base)]
    points += [masked(f"gamma_scope {scope}", "scope", scope=scope) for scope in (0.1, 0.2, 0.25, 0.3, 0.4, 0.5)]
    points.append(masked("gamma_scope 0.25, binary", "scope", scope=0.25, rule=RULES["top-share-binary"]))
    points += [masked(f"self-attention spread {power}", "spread", spread=power) for power in (0, 1, 2, 3)]
    stops = sorted({max(1, setup.steps // 4), max(1, setup.steps // 2)})
    points += [masked(f"mask frozen from step {step}", "early stop", updates=Updates(until=step)) for step in stops]
    points += [masked(f"mask every {n} steps", "interval", updates=Updates(interval=n)) for n in (2, 4)]
    points += [
        Variant(name=f"{steps} steps", family="steps", setup=replace(base, steps=steps))
        for steps in (10, 15, 50)
        if steps != setup.steps
    ]
    points += scoring_points(base)
    points.append(Variant(name=EQUALS, family="training", setup=base, adapter="plus"))
    for name, told in (
        ("deep", "deep projector"),
        ("shallow", "shallow projector, as released"),
        ("reconstruction", "reconstruction training only"),
    ):
        points.append(Variant(name=told, family="training", setup=base, adapter=name, against=EQUALS))
    points += [
        Variant(name=f"preset {name}", family="preset", setup=replace(base, preset=name))
        for name in PRESETS
        if name != base.preset
    ]
    return points


def scoring_points(base: Setup) -> list[Variant]:
    """RealCustom's scoring module with one of its two contexts, without it, and with other shares of tokens."""
    kinds = {
        SCORING: None,
        "scoring by text only": mixing(1.0, 0.0),
        "scoring by latents only": mixing(0.0, 1.0),
        "scoring plain average": mixing(0.5, 0.5),
        "without scoring": mixing(0.0, 0.0),
    }
    points = [
        Variant(
            name=name,
            family="scoring",
            # Equal scores keep arbitrary tokens, so "without" keeps them all.
            setup=replace(base, keep_share=1.0) if name == "without scoring" else base,
            adapter="realcustom",
            against=SCORING,
            prepare=prepare,
        )
        for name, prepare in kinds.items()
    ]
    for share in (0.4, 0.6, 1.0):
        setup = replace(base, keep_share=share)
        name = f"gamma_num {share}"
        points.append(Variant(name=name, family="gamma_num", setup=setup, adapter="realcustom", against=SCORING))
    return points


def mixing(text: float, visual: float) -> Callable:
    """A `prepare` that makes the scoring module mix its two scores with fixed weights; the weights stay as trained."""

    def weights(alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(alpha_bar, text), torch.full_like(alpha_bar, visual)

    def prepare(pipe) -> Callable[[], None]:
        scoring = pipe.adapter.scoring
        before = scoring.weights
        scoring.weights = weights

        def restore() -> None:
            scoring.weights = before

        return restore

    return prepare

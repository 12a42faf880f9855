"""The curriculum training recipe of RealCustom++: reconstruction, then re-contextualisation of growing difficulty.

The paper names the two stages and the growing diversity of pose and size but publishes no lengths, shares or sources;
the numbers here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of the training.

    until: share of the training's samples at which the stage ends, in (0, 1].
    reconstruction: share of samples with the picture itself as reference; the others see the subject elsewhere.
    difficulty: range (low, high) in 0..1 of the pose and size difference of those others.
    """

    until: float
    reconstruction: float
    difficulty: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Stages in order; the last one ends at 1.

    Raises:
        ValueError: the stages do not ascend to 1, or a share lies outside 0..1.
    """

    stages: tuple[Stage, ...] = (
        Stage(until=0.1, reconstruction=1.0),
        Stage(until=0.4, reconstruction=0.3, difficulty=(0.0, 0.5)),
        Stage(until=1.0, reconstruction=0.1, difficulty=(0.0, 1.0)),
    )

    def __post_init__(self):
        ends = [stage.until for stage in self.stages]
        if not ends or ends != sorted(set(ends)) or ends[0] <= 0 or ends[-1] != 1.0:
            raise ValueError(f"The curriculum's stages end at {ends}; they must ascend from above 0 to exactly 1.")
        for stage in self.stages:
            low, high = stage.difficulty
            if not (0 <= stage.reconstruction <= 1 and 0 <= low <= high <= 1):
                raise ValueError(f"A curriculum stage has a share outside 0..1: {stage}.")

    def stage(self, progress: float) -> Stage:
        """The stage at a share of the training in [0, 1)."""
        return next((stage for stage in self.stages if progress < stage.until), self.stages[-1])


def reconstruction_only() -> Curriculum:
    """RealCustom's training, and the ablation of RealCustom++: the reference is always the picture itself."""
    return Curriculum(stages=(Stage(until=1.0, reconstruction=1.0),))


@dataclass(frozen=True)
class Choice:
    """Which record a sample is made of, and whether its reference is the picture itself."""

    index: int
    reconstruct: bool


class Chooser:
    """Position of a sample in the whole training -> `Choice`; a pure function of (curriculum, seed, position).

    Args:
        curriculum: the stages.
        difficulty: (N,) of every record in 0..1.
        samples: of the whole training.
        seed: of the draws.
        first: samples of the whole training that earlier runs have made; position 0 follows them.
    """

    def __init__(self, curriculum: Curriculum, difficulty: np.ndarray, samples: int, seed: int = 0, first: int = 0):
        self.curriculum = curriculum
        self.samples = samples
        self.first = first
        self.seed = seed
        self.order = np.argsort(difficulty, kind="stable")
        self.sorted = difficulty[self.order]
        for stage in curriculum.stages:
            if stage.reconstruction < 1 and self._range(stage)[0] == self._range(stage)[1]:
                raise ValueError(f"No record of the training data has a difficulty within {stage.difficulty}.")

    def __call__(self, position: int) -> Choice:
        position += self.first
        stage = self.curriculum.stage(position / self.samples)
        random = np.random.default_rng((self.seed, position))
        if random.random() < stage.reconstruction:
            return Choice(int(random.integers(len(self.order))), True)
        first, last = self._range(stage)
        return Choice(int(self.order[random.integers(first, last)]), False)

    def _range(self, stage: Stage) -> tuple[int, int]:
        low, high = stage.difficulty
        return int(np.searchsorted(self.sorted, low, "left")), int(np.searchsorted(self.sorted, high, "right"))

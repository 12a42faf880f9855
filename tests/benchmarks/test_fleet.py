"""The simulation of a fleet: against queueing theory, and one effect at a time."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def fleet(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    import fleet

    return fleet


def costs_of(fleet, read: float = 0.0):
    # A batch of four takes twice as long as one.
    run = {(preset, batch): 0.5 + 0.5 * (batch + 2) / 3 for preset in fleet.PRESETS for batch in fleet.BATCHES}
    return fleet.Costs(run, read, 60.0)


def test_one_replica_waits_as_long_as_theory_says(fleet):
    """Poisson arrivals, runs of one second: the mean wait in the queue is load / (2 (1 - load))."""
    random = np.random.default_rng(0)
    asks = fleet.asks_at(fleet.arrivals(0.7, 200_000, False, random), random)
    alone = fleet.Fleet(1, 1, batch=1, queue=10**9)
    day = fleet.simulate(asks, alone, costs_of(fleet))
    assert np.mean(day.waits) - 1 == pytest.approx(0.7 / (2 * 0.3), rel=0.05)
    assert day.busy / day.paid == pytest.approx(0.7, rel=0.02)
    assert len(day.waits) == len(asks)


def test_each_part_brings_what_it_is_for(fleet):
    random = np.random.default_rng(1)
    asks = fleet.asks_at(fleet.arrivals(3.0, 20_000, True, random), random)
    whole = fleet.Fleet(4, 4)
    costs = costs_of(fleet, read=0.2)

    def run(**changes):
        return fleet.simulate(asks, replace(whole, **changes), costs, 20_000)

    day = run()
    assert len(day.waits) + day.refused == len(asks)
    assert run(batch=1).refused > day.refused
    assert run(cache=0).busy / len(run(cache=0).waits) > day.busy / len(day.waits)
    assert run(queue=256).refused < day.refused
    assert run(fewest=1).paid < day.paid
    assert day.waits == run().waits, "a day is the same every time"


def test_bursts_keep_the_mean(fleet):
    random = np.random.default_rng(2)
    for bursty in (False, True):
        assert len(fleet.arrivals(2.0, fleet.DAY, bursty, random)) == pytest.approx(2.0 * fleet.DAY, rel=0.02)

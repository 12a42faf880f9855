"""A day of requests on many replicas, simulated: python benchmarks/fleet.py [MODEL] [--load SHARE] [--replicas N]

Times of a run are measured first, on this machine and MODEL (miniature): each preset, batches of 1, 2 and 4, and what
reading a new reference picture takes. Then a day passes through the policy of `realcustom serve --engine ray`: a queue
of bounded length, first come first served, each run filled with waiting requests of the same settings, and replicas
whose number may follow the load as Ray Serve's does. LOAD (0.7) is the share of the replicas' time without batches that
the mean of the day would fill. The table shows what each part brings.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

DAY = 86400.0
PRESETS = {"exact": 0.3, "fast": 0.5, "turbo": 0.2}  # shares of the requests
MODELS = {"first": 0.75, "second": 0.25}  # each on replicas of its own: a server has one model
SIZES = (0.8, 0.2)  # shares of two sizes, which are not made together
BATCHES = (1, 2, 4)
PICTURES = 5000  # reference pictures in use, the popular ones by Zipf's law
TICK = 10.0  # seconds between two looks of the autoscaler
GROW_AFTER, SHRINK_AFTER = 30.0, 600.0  # seconds, Ray Serve's own


@dataclass(frozen=True)
class Costs:
    """Seconds, as measured: of a run by (preset, images), of reading a new picture, of starting a replica."""

    run: dict[tuple[str, int], float]
    read: float
    start: float

    def seconds(self, preset: str, images: int) -> float:
        """Of a run; between measured numbers of images on a straight line."""
        return float(np.interp(images, BATCHES, [self.run[preset, batch] for batch in BATCHES]))


@dataclass(frozen=True)
class Fleet:
    """Replicas of one model, the fewest and the most; images a run; pictures in a cache; length of the queue."""

    fewest: int
    most: int
    batch: int = 4
    cache: int = 32
    queue: int = 32


@dataclass(frozen=True)
class Asked:
    """A request: when, what must be the same to share a run, and its picture."""

    at: float
    preset: str
    size: int
    picture: int


@dataclass
class Day:
    """What became of them: seconds from asking to the picture, refused, seconds of replicas at work and in all."""

    waits: list[float] = field(default_factory=list)
    refused: int = 0
    busy: float = 0.0
    paid: float = 0.0


@dataclass
class _Replica:
    ready: float
    cache: OrderedDict = field(default_factory=OrderedDict)

    def misses(self, picture: int, size: int) -> bool:
        """Whether a picture is new to it."""
        known = picture in self.cache
        self.cache[picture] = None
        self.cache.move_to_end(picture)
        while len(self.cache) > size:
            self.cache.popitem(last=False)
        return not known


def simulate(asks: Sequence[Asked], fleet: Fleet, costs: Costs, seconds: float = DAY) -> Day:
    """Let all requests pass; what still waits at the end is made."""
    day = Day()
    order = itertools.count()
    events: list = [(ask.at, next(order), "ask", ask) for ask in asks]
    if fleet.most > fleet.fewest:
        events += [(moment, next(order), "tick", None) for moment in np.arange(TICK, seconds, TICK)]
    heapq.heapify(events)
    idle = [_Replica(0.0) for _ in range(fleet.fewest)]
    replicas, starting, running = fleet.fewest, 0, 0
    queue: deque[Asked] = deque()
    above = below = 0.0  # since when more, or fewer, are wanted
    last = 0.0
    while events:
        now, _, kind, what = heapq.heappop(events)
        day.paid += (replicas + starting) * (now - last)
        last = now
        if kind == "ask":
            if len(queue) >= fleet.queue:
                day.refused += 1
            else:
                queue.append(what)
        elif kind == "free":
            running -= 1
            idle.append(what)
        elif kind == "ready":
            starting, replicas = starting - 1, replicas + 1
            idle.append(_Replica(now))
        else:
            wanted = min(fleet.most, max(fleet.fewest, running + len(queue)))
            above = now if wanted <= replicas + starting else above
            below = now if wanted >= replicas else below
            if now - above >= GROW_AFTER:
                for _ in range(wanted - replicas - starting):
                    starting += 1
                    heapq.heappush(events, (now + costs.start, next(order), "ready", None))
            if now - below >= SHRINK_AFTER and idle:
                idle.pop()
                replicas, below = replicas - 1, now
        while idle and queue:
            replica = idle.pop(0)
            together = _together(queue, fleet.batch)
            new = sum(replica.misses(ask.picture, fleet.cache) for ask in together)
            took = costs.seconds(together[0].preset, len(together)) + new * costs.read
            running += 1
            day.busy += took
            day.waits += [now + took - ask.at for ask in together]
            heapq.heappush(events, (now + took, next(order), "free", replica))
    return day


def _together(queue: deque[Asked], most: int) -> list[Asked]:
    """The first request and those that fit into its run, taken from the queue."""
    first = queue.popleft()
    fitting = [ask for ask in queue if (ask.preset, ask.size) == (first.preset, first.size)][: most - 1]
    for ask in fitting:
        queue.remove(ask)
    return [first, *fitting]


def arrivals(rate: float, seconds: float, bursty: bool, random: np.random.Generator) -> np.ndarray:
    """Moments of requests: Poisson, `rate` a second on average; bursty ones follow the hours of a day (from a third to
    five thirds of the mean) and come four times as often in one minute of ten."""
    if not bursty:
        return np.sort(random.uniform(0, seconds, random.poisson(rate * seconds)))
    minutes = np.arange(0, seconds, 60.0)
    shape = 1 - 2 / 3 * np.cos(2 * math.pi * minutes / DAY)
    shape *= np.where(random.random(len(minutes)) < 0.1, 4.0, 1.0)
    counts = random.poisson(shape / shape.mean() * rate * 60)
    return np.sort(np.repeat(minutes, counts) + random.uniform(0, 60, counts.sum()))


def asks_at(moments: np.ndarray, random: np.random.Generator) -> list[Asked]:
    """Mixed requests at these moments."""
    count = len(moments)
    presets = random.choice(list(PRESETS), count, p=list(PRESETS.values()))
    sizes = random.choice(len(SIZES), count, p=SIZES)
    pictures = random.zipf(1.3, count) % PICTURES
    return [Asked(*row) for row in zip(moments.tolist(), presets, sizes.tolist(), pictures.tolist(), strict=True)]


def measure(run, new_picture, start: float) -> Costs:
    """Costs of an engine's `run(requests)`, the least of several tries, since what else a machine does only adds to
    them; `new_picture(number)` is one that it has not seen."""
    from realcustom import Request

    def seconds(preset: str, numbers: Sequence[int]) -> float:
        subject = {"toy": new_picture(0)}
        asked = [Request(prompt="a toy on grass", subjects=subject, preset=preset, seed=n) for n in numbers]
        begun = time.monotonic()
        run(asked)
        return time.monotonic() - begun

    seconds("turbo", [0])
    times = {
        (preset, batch): min(seconds(preset, range(batch)) for _ in range(3)) for preset in PRESETS for batch in BATCHES
    }

    def reading(number: int) -> float:
        begun = time.monotonic()
        run([Request(prompt="a toy on grass", subjects={"toy": new_picture(number)}, preset="turbo")])
        return time.monotonic() - begun

    read = min(reading(number) for number in range(1, 6)) - times["turbo", 1]
    return Costs(times, max(0.0, read), start)


def line(name: str, days: Sequence[Day], price: float) -> str:
    """A row of the table: all models of one fleet together."""
    waits = np.concatenate([day.waits for day in days])
    refused, paid = sum(day.refused for day in days), sum(day.paid for day in days)
    busy = sum(day.busy for day in days)
    hours = paid / 3600
    return (
        f"{name:34} {np.percentile(waits, 50):8.2f} {np.percentile(waits, 99):8.2f} "
        f"{100 * refused / (refused + len(waits)):8.2f} {hours:8.1f} {100 * busy / paid:6.0f} "
        f"{hours * price / len(waits) * 1e6:10.0f}"
    )


def day_table(costs: Costs, replicas: int, load: float, price: float, bursty: bool) -> None:
    """Print what one day gives on fleets that differ in one thing each."""
    mean = sum(share * costs.seconds(preset, 1) for preset, share in PRESETS.items()) + costs.read
    whole = Fleet(replicas, replicas)
    fleets = {
        "whole": whole,
        "without batches across requests": replace(whole, batch=1),
        "without the feature cache": replace(whole, cache=0),
        "with autoscaling from a quarter": replace(whole, fewest=max(1, replicas // 4)),
        "a queue of 256": replace(whole, queue=256),
    }
    print(f"\n{'bursty' if bursty else 'Poisson'} day, {replicas} replicas a model, load {load:g}")
    print(f"{'':34} {'p50 s':>8} {'p99 s':>8} {'refused%':>8} {'hours':>8} {'busy%':>6} {'a million':>10}")
    for name, fleet in fleets.items():
        days = []
        for number, share in enumerate(MODELS.values()):
            random = np.random.default_rng(number)
            own = replace(fleet, fewest=max(1, round(fleet.fewest * share)), most=max(1, round(fleet.most * share)))
            moments = arrivals(load * max(1, round(replicas * share)) / mean, DAY, bursty, random)
            days.append(simulate(asks_at(moments, random), own, costs))
        print(line(name, days, price))


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="miniature")
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--price", type=float, default=1.0, help="of an hour of one replica")
    options = parser.parse_args()
    from conftest import picture

    from realcustom import Engine

    begun = time.monotonic()
    engine = Engine.load(options.model, batch_size=max(BATCHES))
    costs = measure(engine.run_many, picture, time.monotonic() - begun)
    print("seconds a run:", {f"{preset} x{batch}": round(took, 3) for (preset, batch), took in costs.run.items()})
    print(f"seconds for a new picture {costs.read:.3f}, to start a replica {costs.start:.1f}")
    for bursty in (False, True):
        day_table(costs, options.replicas, options.load, options.price, bursty)


if __name__ == "__main__":
    main()

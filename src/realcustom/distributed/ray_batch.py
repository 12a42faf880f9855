"""Batch jobs on a Ray cluster: Ray Data hands tasks to actors that each hold one engine.

Only the descriptions of tasks travel. Actors read pictures and write results themselves, so paths must mean the same
on every node: a shared file system or a store's URLs.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from realcustom.batch.jobs import rounds_of
from realcustom.batch.outputs import Task
from realcustom.batch.run import Outcome, groups, lost, make, refused
from realcustom.distributed.cluster import connect, disconnect, import_ray, load_engine, share


class RayBatch:
    """A cluster as long as a batch lasts: `with RayBatch(loading) as cluster: cluster.run(tasks)`.

    loading: arguments of `Engine.load`, {"model": ..., "adapter": ..., "device": ..., "dtype": ...}.
    address: see `realcustom.distributed.cluster.connect`.
    workers: engines; None is one a GPU, or one for every two CPU cores.
    together: images that a worker makes in one batch; None is the engine's own choice.
    """

    def __init__(
        self,
        loading: Mapping[str, Any],
        *,
        address: str | None = None,
        workers: int | None = None,
        together: int | None = None,
    ):
        self.loading = {**loading, "batch_size": together}
        self.address, self.workers = address, workers

    def __enter__(self) -> RayBatch:
        self._own = connect(self.address)
        self.count, self.share = share(self.workers)
        return self

    def __exit__(self, *error: object) -> None:
        if self._own:
            disconnect()

    def refused(self, tasks: Sequence[Task]) -> dict[int, str]:
        """What the model says against tasks, asked on one worker: line -> sentence."""
        ray = import_ray()
        remote = ray.remote(num_cpus=self.share.cpus, num_gpus=self.share.gpus)(_refused)
        try:
            return ray.get(remote.remote(self.loading, list(tasks)))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError):
                raise ValueError(str(error.cause)) from None
            raise

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Make tasks, each after those it needs, round by round; an outcome as each is finished."""
        failed: set[str] = set()
        for round_tasks in rounds_of(tasks):
            outcomes = [lost(task, failed) for task in round_tasks]
            able = [task for task, outcome in zip(round_tasks, outcomes, strict=True) if outcome is None]
            yield from filter(None, outcomes)
            failed.update(outcome.id for outcome in outcomes if outcome is not None)
            for outcome in self._round(able):
                if outcome.error is not None:
                    failed.add(outcome.id)
                yield outcome

    def _round(self, tasks: list[Task]) -> Iterator[Outcome]:
        """Independent tasks in any order. Ray Data starts a worker that dies again, and its tasks with it."""
        if not tasks:
            return
        ray = import_ray()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        size = self.loading["batch_size"] or (4 if self.share.gpus else 1)
        rows = [{"tasks": pickle.dumps(group)} for group in groups(tasks, size)]
        workers = min(self.count, len(rows))
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=(self.loading,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            num_cpus=self.share.cpus,
            num_gpus=self.share.gpus or None,
        )
        for row in made.iter_rows():
            yield from pickle.loads(row["outcomes"])


class _Worker:
    """An actor's engine."""

    def __init__(self, loading: Mapping[str, Any]):
        self.engine = load_engine(loading)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        # Not again: a task may have been finished by a worker that died before it could say so.
        made = [make(self.engine, pickle.loads(tasks), again=False) for tasks in batch["tasks"]]
        return {"outcomes": [pickle.dumps(outcomes) for outcomes in made]}


def _refused(loading: Mapping[str, Any], tasks: list[Task]) -> dict[int, str]:
    return refused(load_engine(loading), tasks)

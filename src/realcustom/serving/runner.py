"""The queue: waiting generations to finished ones, a bounded number, each within its time."""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain, repeat
from typing import Any

from realcustom.serving import tracing
from realcustom.serving.blobs import NotHere
from realcustom.serving.holders import HOLDER
from realcustom.serving.limits import Busy, Draining, Limits
from realcustom.serving.live import Live
from realcustom.serving.logs import log_generation
from realcustom.serving.metrics import Metrics
from realcustom.serving.records import CANCELLED, DONE, FAILED, Job, Jobs, Wishes, waiting_order
from realcustom.serving.trouble import storage_trouble
from realcustom.types import Cancelled, Request, Result

log = logging.getLogger(__name__)

PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before what the disk or the database refused is tried again
UNEXPECTED = "This failed unexpectedly; the server's log says where."
ENDED = 1000  # generations whose ends are remembered for who watches all of them
PREVIEW_SECONDS = 0.4  # between two previews, so that watching costs little of the time of making


class Stopping(Exception):
    """The server ends while something waits to be written."""


class Runner:
    """Threads that take generations from the queue, as many together as the engine makes in one batch.

    Args:
        engine: has `run_many`, `together`, `preview` and `batch_size` as `Engine`; `workers`, where
            it has one, is how many batches it makes at the same time.
        jobs: where generations are kept.
        open_job: a job's settings as a request with opened pictures.
        limits, metrics: of the server.

    Attributes:
        told: called whenever a generation has ended.
    """

    def __init__(
        self, engine, jobs: Jobs, open_job: Callable[[Mapping[str, Any]], Request], limits: Limits, metrics: Metrics
    ):
        self.engine, self.jobs, self.open_job = engine, jobs, open_job
        self.limits, self.metrics = limits, metrics
        self._waiting: list[str] = []  # in `waiting_order`
        self._live: OrderedDict[str, Live] = OrderedDict()
        self._changed = threading.Condition()
        self._ended: deque[tuple[str, str]] = deque(maxlen=ENDED)
        self._ends = 0
        self.told: Callable[[], None] = lambda: None
        self._draining = self._stopping = False
        self._seconds = 2.0  # running mean of what one generation takes
        self._threads = [
            threading.Thread(target=self._work, name=f"generate-{index}", daemon=True)
            for index in range(getattr(engine, "workers", 1))
        ]

    def start(self) -> None:
        """Take up what an earlier server left, then whatever comes."""
        with self._changed:
            for job in self.jobs.recover():
                self._queue(job, None)
        for thread in self._threads:
            thread.start()

    def drain(self, seconds: float) -> None:
        """Take nothing more, let what runs finish for so many seconds, then `stop`."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
        end = time.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))
        self.stop()

    def stop(self, seconds: float = 10.0) -> None:
        """End the threads at the next step; what waits or runs is taken up at the next start."""
        with self._changed:
            self._draining = self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(seconds)
        # Who watches what is handed back to the next server hears of it.
        for live in list(self._live.values()):
            live.finish()

    @property
    def draining(self) -> bool:
        """Whether the server is being stopped."""
        return self._draining

    @property
    def waiting(self) -> int:
        """Generations in the queue."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether something is being made, or may still be."""
        return any(thread.is_alive() for thread in self._threads)

    def add(self, asked: Mapping[str, Any], request: Mapping[str, Any], wishes: Wishes) -> Job:
        """Queue a generation whose settings are known to be right; under a key that is taken, it is that one.

        Raises:
            ValueError: the key is another request's.
            Busy: too many wait already, of all tokens or of the one that asks.
            Draining: the server is being stopped.
            StorageTrouble: it could not be kept, or nothing that is made could be.
        """
        if self.jobs.store.trouble is not None:
            raise self.jobs.store.trouble
        with self._changed:
            if self._draining:
                raise Draining
            known = self.known(asked, wishes)
            if known is not None:
                return known
            try:
                self._check_room()
            except Busy:
                self.metrics.count("rejected")
                raise
            job = self.jobs.add(asked, request, wishes)
            self._queue(job, tracing.here())
            self._changed.notify()
        self.metrics.count("accepted")
        return job

    def known(self, asked: Mapping[str, Any], wishes: Wishes) -> Job | None:
        """The generation that was made under the key of these wishes; ValueError where it was asked for otherwise."""
        job = None if wishes.key is None else self.jobs.keyed(wishes.key)
        if job is not None and job.asked != dict(asked):
            raise ValueError("This Idempotency-Key was used for another request.")
        return job

    def _check_room(self) -> None:
        waiting = len(self._waiting)
        if waiting >= self.limits.queue:
            pace = self._seconds / (len(self._threads) * self.engine.batch_size)
            wait = min(3600, max(1, math.ceil(pace * waiting / 2)))
            raise Busy(f"The queue is full ({waiting} generations wait)", wait)
        holder = HOLDER.get()
        if holder is not None:
            holder.check_share(sum(self._live[name].owner == holder.name for name in self._waiting), self.limits.queue)
            holder.take_turn()

    def _queue(self, job: Job, origin: tracing.Origin | None) -> None:
        self._live[job.id] = Live(origin, job.owner, waiting_order(job))
        insort(self._waiting, job.id, key=lambda name: self._live[name].order)

    def unfinished(self, owner: str | None) -> dict[str, Live]:
        """What waits or runs, of one owner or (None) of all, by id."""
        with self._changed:
            return {name: live for name, live in self._live.items() if owner in (None, live.owner)}

    def ended_since(self, count: int, owner: str | None) -> tuple[int, list[str]]:
        """How many generations have ended in all, and the ids of an owner's that ended after the first `count`; of
        more than `ENDED` the newest."""
        with self._changed:
            new = list(self._ended)[max(0, len(self._ended) - (self._ends - count)) :] if count < self._ends else []
            return self._ends, [name for name, whose in new if owner in (None, whose)]

    def live(self, name: str) -> Live | None:
        """How far an unfinished generation is; None once it is finished."""
        return self._live.get(name)

    def position(self, name: str) -> int | None:
        """How many generations wait before this one; None when it does not wait."""
        with self._changed:
            return self._waiting.index(name) if name in self._waiting else None

    def cancel(self, name: str) -> Job:
        """Stop a generation: at once while it waits, after its step while it runs. Finished ones stay as they are.

        Raises:
            NotHere: there is none.
        """
        self.jobs.get(name)
        with self._changed:
            live = self._live.get(name)
            if live is not None:
                live.stop("It was cancelled.")
            if name in self._waiting:
                if self.jobs.end(name, CANCELLED, "It was cancelled."):
                    self.metrics.count(CANCELLED)
                self._waiting.remove(name)
                self._forget(name)
        return self.jobs.get(name)

    def problems(self) -> list[str]:
        """Why no generation can be made now, in sentences; empty where all is well."""
        found = []
        if self._draining:
            found.append("This server is being stopped.")
        elif not any(thread.is_alive() for thread in self._threads):
            found.append("Nothing works on the queue of this server.")
        if self.jobs.store.trouble is not None:
            found.append(str(self.jobs.store.trouble))
        return found

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._draining:
                    self._changed.wait()
                if self._draining:
                    return
                name = self._waiting.pop(0)
            # Whatever happens to one generation, the next one is made.
            try:
                self._run(name)
            except Stopping:
                return
            except Exception:
                log.exception("generation %s", name)
                self._forget(name)

    def _steady(self, action: Callable[[], Any]) -> Any:
        """The value of `action`, tried again as long as the disk or the database refuses it.

        Raises:
            Stopping: the server ends before it succeeded.
        """
        store = self.jobs.store
        for pause in chain(PAUSES, repeat(PAUSES[-1])):
            try:
                value = action()
            except Exception as error:
                trouble = storage_trouble(error)
                if trouble is None:
                    raise
                store.note(trouble)
            else:
                if store.trouble is not None:
                    store.note(None)
                return value
            with self._changed:
                if self._changed.wait_for(lambda: self._stopping, pause):
                    raise Stopping

    def _run(self, name: str) -> None:
        """One generation, and with it those waiting ones that fit into its batch."""
        group: dict[str, Request] = {}
        try:
            first = self._open(name)
            if first is None:
                return
            group = {name: first}
            group |= self._companions(first)
            begun = [job.id for job in self._steady(lambda: self.jobs.begin(group))]
            for job in begun:
                self._live[job].begin(self.limits.seconds)
            start = time.monotonic()
            origins = {job: self._live[job].origin for job in begun}
            with tracing.span("generate", origins[begun[0]] if begun else None, batch=len(begun)):
                results = self._results(begun, [group[job] for job in begun])
                took = time.monotonic() - start
                for job, result in zip(begun, results, strict=True):
                    self._keep(job, result)
            for job in begun:
                # Removed meanwhile, or the disk has trouble again: then there is nothing to write down.
                with suppress(NotHere, sqlite3.Error):
                    log_generation(self.jobs.get(job), took, len(begun), origins[job])
            self.metrics.observe(took)
            self._seconds += 0.2 * (took - self._seconds)
        except Stopping:
            raise
        except Exception:
            log.exception("generations %s", list(group) or name)
            # None of them stays "running"; those that are finished stay as they are.
            for job in group or [name]:
                self._end(job, FAILED, UNEXPECTED)

    def _companions(self, first: Request) -> dict[str, Request]:
        """Waiting generations for the rest of the first one's batch, taken from the queue in their order."""
        room, found = self.engine.batch_size - first.num_images, {}
        key = self.engine.together(first)
        for name in list(self._waiting) if room > 0 else ():
            request = self._open(name)
            if request is None or request.num_images > room or self.engine.together(request) != key:
                continue
            with self._changed:
                if name not in self._waiting:
                    continue
                self._waiting.remove(name)
            found[name] = request
            room -= request.num_images
            if room == 0:
                break
        return found

    def _open(self, name: str) -> Request | None:
        """The request of a generation; what cannot be opened any more has failed."""
        try:
            return self._steady(lambda: self.engine.resolve(self.open_job(self.jobs.get(name).request)))
        except (ValueError, LookupError, OSError) as error:
            with self._changed:
                if name in self._waiting:
                    self._waiting.remove(name)
            self._end(name, FAILED, str(error))
            return None

    def _results(self, names: list[str], requests: list[Request]) -> list[Result | Exception]:
        def told(index: int, progress) -> None:
            self._live[names[index]].report(progress, self.engine.preview, PREVIEW_SECONDS)

        def stopped(index: int) -> bool:
            return self._stopping or self._live[names[index]].must_stop()

        try:
            return self.engine.run_many(requests, progress=told, cancelled=stopped)
        except Exception as error:  # whatever a model may raise ends these generations, not the server
            log.exception("generations %s", names)
            return [error] * len(names)

    def _keep(self, name: str, result: Result | Exception) -> None:
        if isinstance(result, Result):
            self._steady(lambda: self._store(name, result))
            self.metrics.count(DONE)
            self._forget(name)
        elif isinstance(result, Cancelled):
            reason = self._live[name].reason
            # Without a reason the server is ending: the next server runs it, and this was no crash.
            if reason is None:
                self._steady(lambda: self.jobs.put_back(name))
            else:
                self._end(name, CANCELLED if self._live[name].by_user else FAILED, reason)
        else:
            self._end(name, FAILED, _sentence(result))

    def _store(self, name: str, result: Result) -> None:
        store = self.jobs.store
        images = [store.add_picture(*pair)["id"] for pair in zip(result.images, result.metadata, strict=True)]
        flagged = result.flagged or (False,) * len(images)
        self.jobs.finish(name, images, flagged, store.add_masks(result.masks) if result.masks else None)

    def _end(self, name: str, state: str, error: str) -> None:
        if self._steady(lambda: self.jobs.end(name, state, error)):
            self.metrics.count(state)
        self._forget(name)

    def _forget(self, name: str) -> None:
        live = self._live.pop(name, None)
        if live is not None:
            live.finish()
            with self._changed:
                self._ends += 1
                self._ended.append((name, live.owner))
            self.told()


def stored_request(request: Request) -> dict[str, Any]:
    """A request with opened pictures as a job keeps it: every picture by its id."""
    return request.with_pictures(lambda picture, *_: picture.path.removesuffix(".png")).to_dict()


def _sentence(error: Exception) -> str:
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "There is not enough memory for this: choose a smaller size or fewer images."
    return UNEXPECTED

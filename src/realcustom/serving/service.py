"""The room behind the studio and the REST interface: the same checks, the same queue, the same sentences."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realcustom.checks import whole
from realcustom.engine.characters import Character, read_record
from realcustom.engine.requests import check_request
from realcustom.pictures.content import Picture
from realcustom.pictures.opening import DECODING
from realcustom.pictures.png import metadata_of
from realcustom.serving.holders import HOLDER, MAX_PRIORITY
from realcustom.serving.limits import Limits, TooLarge, check_pixels
from realcustom.serving.metrics import Metrics
from realcustom.serving.records import UNFINISHED, Cast, Job, Jobs, Wishes, forget_picture
from realcustom.serving.restoring import Restored, restore
from realcustom.serving.runner import Runner, stored_request
from realcustom.serving.store import Store
from realcustom.serving.upkeep import Upkeep
from realcustom.serving.webhooks import HookRules, Webhooks
from realcustom.types import MASK, Request

OPTIONS = ("describe_characters", "model", "priority", "webhook")  # fields beside those of a request


KEY = re.compile(r"[\x20-\x7e]{1,255}")


LAST_EVENTS = 3.0  # seconds that open streams get for their last event before the server stops


class Service:
    """Everything a door needs.

    Attributes:
        engine: a `realcustom.engine.engine.Engine`, or what behaves like it.
        name: of its model. started: seconds since 1970.
        store, jobs, cast: what is kept.
        runner: the queue.
        limits, metrics: of this server.
        root_path: under which a proxy shows the server; every path that is told begins with it.
        hooks: what tells other servers that a generation has ended.
    """

    def __init__(
        self,
        engine,
        folder: str | Path,
        limits: Limits | None = None,
        name: str = "model",
        hooks: HookRules | None = None,
    ):
        self.engine = engine
        self.name = name
        self.root_path = ""
        self.streams = 0  # of events that are open; counted in the event loop alone
        self.started = time.time()
        self.limits = limits or Limits()
        self.metrics = Metrics(self.gauges)
        self.store = Store(folder)
        self.jobs = Jobs(self.store)
        self.cast = Cast(self.store)
        self.upkeep = Upkeep(self.store, self.jobs, self.limits)
        self.runner = Runner(engine, self.jobs, self.open_request, self.limits, self.metrics)
        self.hooks = Webhooks(self.jobs, self.describe_job, hooks or HookRules())
        self.runner.told = self.hooks.look

    def start(self) -> None:
        """Begin to work; what an earlier server left unfinished comes first."""
        self.upkeep.start()
        self.runner.start()
        self.hooks.start()

    def drain(self) -> None:
        """Refuse new work and give what runs the time that the limits allow; what is unfinished then waits for the
        next start. Blocks until nothing is made any more, and until the streams have told so."""
        self.runner.drain(self.limits.drain)
        end = time.monotonic() + LAST_EVENTS
        while self.streams and time.monotonic() < end:
            time.sleep(0.02)

    def stop(self) -> None:
        """End at the next step, keeping the queue for the next start."""
        self.runner.stop()
        self.hooks.stop()
        self.upkeep.stop()
        self.store.close()

    def submit(self, fields: Mapping[str, Any], key: str | None = None) -> Job:
        """Queue a generation.

        Args:
            fields: a request's JSON form with pictures by id, where the prompt may mention characters;
                `describe_characters`, which adds their descriptions to the prompt; `model`, which must be the one
                that is served; `priority`; and `webhook`, an address that is told of the end.
            key: under which the same request is the same generation, however often it is sent.

        Raises:
            ValueError: in one sentence, what is wrong with it.
            Busy: the queue is full.
            Draining: the server is being stopped.
            NoRoom: the data folder holds as much as it may.
            StorageTrouble: it cannot be used at the moment.
        """
        wishes = self._wishes(fields, key)
        known = self.runner.known(fields, wishes)
        if known is not None:
            return known
        self.store.check_room(0, self.limits)
        return self.runner.add(dict(fields), stored_request(self.check(fields)), wishes)

    def _wishes(self, fields: Mapping[str, Any], key: str | None) -> Wishes:
        if not isinstance(fields, Mapping):
            raise ValueError("A request must be a record of fields.")
        priority = whole("The priority", fields.get("priority") or 0, 0, MAX_PRIORITY)
        holder = HOLDER.get()
        if holder is not None and priority > holder.priority:
            raise ValueError(f"This token may ask for a priority of at most {holder.priority}, not {priority}.")
        if key is not None and not KEY.fullmatch(key):
            raise ValueError("An Idempotency-Key has 1 to 255 printable ASCII characters.")
        webhook = fields.get("webhook")
        if webhook is not None:
            self.hooks.rules.check(webhook)
        return Wishes(priority=priority, key=key, webhook=webhook)

    def check(self, fields: Mapping[str, Any]) -> Request:
        """The request that these fields ask for, with opened pictures and the model's defaults; errors as `submit`."""
        if not isinstance(fields, Mapping):
            raise ValueError("A request must be a record of fields.")
        fields = _without_nulls(fields)
        describe = fields.get("describe_characters", False)
        if not isinstance(describe, bool):
            raise ValueError(f"describe_characters must be true or false, not {describe!r}.")
        if fields.get("model", self.name) != self.name:
            raise ValueError(f'This server has the model "{self.name}", not {fields["model"]!r}.')
        plain = {name: value for name, value in fields.items() if name not in OPTIONS}
        request = self.engine.resolve(self.open_request(read_record(plain, self.cast.find, describe)))
        if request.num_images > self.limits.images:
            raise ValueError(
                f"One generation makes at most {self.limits.images} images here, not {request.num_images}."
            )
        return request

    def open_request(self, record: Mapping[str, Any]) -> Request:
        """A request's JSON form with its pictures, given by id, opened.

        Raises:
            ValueError: a field is wrong, a picture is not in the store, or a word does not stand in the prompt.
        """
        request = Request.from_dict(record)
        count = itertools.count()
        request.with_pictures(lambda *_: next(count))
        if next(count) > self.limits.pictures:
            raise ValueError(f"One generation takes at most {self.limits.pictures} pictures here.")
        # Words before pictures, which may take long to open.
        check_request(request)
        return request.with_pictures(self._open)

    def restore(self, source: bytes | str | Path) -> Restored:
        """The settings stored in a PNG that was made by realcustom through any door, as the fields of `submit`.

        A picture is found again when the store has one that shows the same; what it lacks is named.

        Args:
            source: the PNG file: its bytes, or its path.

        Raises:
            TooLarge: it has more pixels than are taken here.
            ValueError: it is no PNG file, carries no settings, or they are damaged.
        """
        return restore(self.settings_in(source), self.store.picture_showing, self.engine.source)

    def settings_in(self, source: bytes | str | Path) -> dict[str, Any]:
        """The settings stored in a PNG; ValueError, which names no path of the server, where there are none."""
        try:
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
        except OSError:
            raise ValueError("This picture cannot be read.") from None
        try:
            pixels = check_pixels(data, self.limits)
        except TooLarge:
            raise
        except ValueError:
            raise ValueError("This picture is not a PNG file that can be read.") from None
        with DECODING.take(pixels):
            return metadata_of(data, "This picture")

    def describe_job(self, job: Job) -> dict[str, Any]:
        """A generation as the doors show it."""
        live = self.runner.live(job.id) if job.state in UNFINISHED else None
        words = list(job.request["subjects"])
        made = len(job.images) * Request.from_dict(job.request).steps_run if job.finished_well else 0
        return {
            "id": job.id,
            "state": job.state,
            "step": live.step if live else made,
            "steps": live.steps if live else made,
            "position": self.runner.position(job.id),
            "error": job.error,
            "prompt": job.request["prompt"],
            "request": job.request,
            "images": [f"{self.root_path}/v1/generations/{job.id}/images/{index}" for index in range(len(job.images))],
            "image_ids": list(job.images),
            "flagged": list(job.flagged),
            "warnings": list(self.engine.warnings(job.request["prompt"])),
            "masks": words if job.masks else [],
            "favourites": list(job.favourites),
            "trashed": job.trashed,
            "attempts": job.attempts,
            "priority": job.priority,
            "created": job.created,
            "started": job.started,
            "finished": job.finished,
        }

    def gauges(self) -> dict[str, tuple[str, float]]:
        """What can be measured at this moment, for the metrics page."""
        counts = self.jobs.counts()
        gauges = {
            "realcustom_queue_length": ("Generations that wait.", self.runner.waiting),
            "realcustom_queue_limit": ("Generations that may wait.", self.limits.queue),
        }
        for state, count in counts.items():
            gauges[f"realcustom_stored_{state}"] = (f"Generations in the store that are {state}.", count)
        return gauges

    def remove_picture(self, name: str) -> None:
        """Forget a picture that nothing uses.

        Raises:
            NotHere: there is none.
            ValueError: a generation or a character uses it.
        """
        self.store.pictures.path(name)
        if not forget_picture(self.store, name):
            raise ValueError("This picture is used by a generation or a character; remove those first.")

    def save_character(self, record: Mapping[str, Any], replaces: str | None = None) -> Character:
        """Keep a character whose pictures are given by id; errors as `Cast.save`."""
        return self.cast.save(Character.from_dict(record), replaces)

    def _open(self, source: Any, kind: str, _: str) -> Picture:
        opener = self.store.region if kind == MASK else self.store.reference
        try:
            return source if isinstance(source, Picture) else opener(source)
        except LookupError as error:
            raise ValueError(f"{str(error).rstrip('.')}: upload it first.") from None


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request, its subjects and its controls without those that are null: null is the default."""

    def given(record: Any) -> Any:
        if not isinstance(record, Mapping):
            return record
        return {name: value for name, value in record.items() if value is not None}

    record = given(fields)
    if isinstance(record.get("subjects"), Mapping):
        record["subjects"] = {word: given(subject) for word, subject in record["subjects"].items()}
    if isinstance(record.get("controls"), list):
        record["controls"] = [given(control) for control in record["controls"]]
    return record

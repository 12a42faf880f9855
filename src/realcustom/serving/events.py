"""The progress of a generation as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from realcustom.serving.blobs import NotHere
from realcustom.serving.holders import seen_owner
from realcustom.serving.live import Live, data_url, mask_url
from realcustom.serving.records import UNFINISHED
from realcustom.serving.service import Service

PAUSE = 0.1  # seconds between two looks
HEARTBEAT = 15  # seconds after which a comment keeps the connection open
UNREAD = 60  # seconds that a client may take to read an event


def event_response(service: Service, name: str) -> EventSourceResponse:
    """Events of one generation: "progress" at every change, at most ten a second, and "end" once it is finished.

    Where the server is stopped before, the last event is "stopping": the next server goes on with the generation.
    """
    return EventSourceResponse(
        _counted(service, _events(service, name)),
        headers={"cache-control": "no-store"},
        ping=HEARTBEAT,
        ping_message_factory=lambda: ServerSentEvent(comment="waiting"),
        sep="\n",
        send_timeout=UNREAD,
    )


def news_response(service: Service) -> EventSourceResponse:
    """Events of all generations of the token that asks: "progress" at every change, "end" of each; one stream."""
    return EventSourceResponse(
        _counted(service, _news(service, seen_owner())),
        headers={"cache-control": "no-store"},
        ping=HEARTBEAT,
        ping_message_factory=lambda: ServerSentEvent(comment="waiting"),
        sep="\n",
        send_timeout=UNREAD,
    )


async def _counted(service: Service, events: AsyncIterator[ServerSentEvent]) -> AsyncIterator[ServerSentEvent]:
    """The events, while a stream more is open: a server that stops waits for their last one."""
    service.streams += 1
    try:
        async for event in events:
            yield event
    finally:
        service.streams -= 1


async def _news(service: Service, owner: str | None) -> AsyncIterator[ServerSentEvent]:
    runner = service.runner
    ends, _ = await run_in_threadpool(runner.ended_since, 0, owner)
    seen: dict[str, tuple] = {}
    while True:
        # Read first: what is sent after it comes again with the next look.
        last = runner.draining and not runner.busy
        now = await run_in_threadpool(_states, service, owner)
        for name, state in now.items():
            if seen.get(name) != state:
                step, steps, position = state
                yield _event("progress", {"id": name, "step": step, "steps": steps, "position": position})
        seen = now
        ends, ended = await run_in_threadpool(runner.ended_since, ends, owner)
        for record in await run_in_threadpool(_ended, service, ended) if ended else ():
            yield _event("end", record)
        if last:
            yield _event("stopping", {})
            return
        await asyncio.sleep(PAUSE)


def _states(service: Service, owner: str | None) -> dict[str, tuple]:
    runner = service.runner
    return {name: (live.step, live.steps, runner.position(name)) for name, live in runner.unfinished(owner).items()}


def _ended(service: Service, names: list[str]) -> list[dict[str, Any]]:
    found = []
    for name in names:
        with suppress(NotHere):  # removed already
            found.append(service.describe_job(service.jobs.get(name)))
    return found


async def _events(service: Service, name: str) -> AsyncIterator[ServerSentEvent]:
    live = service.runner.live(name)
    if live is not None:
        live.watchers += 1
        try:
            async for record in _progress(service, name, live):
                yield _event("progress", record)
        finally:
            live.watchers -= 1
    job = await run_in_threadpool(lambda: service.describe_job(service.jobs.get(name)))
    yield _event("stopping" if job["state"] in UNFINISHED else "end", job)


async def _progress(service: Service, name: str, live: Live) -> AsyncIterator[dict[str, Any]]:
    """Records of what changed: steps, the place in the queue, a preview with its masks."""
    seen, shown = None, None
    while not live.finished.is_set():
        # Not in the event loop: the queue may be locked, and previews are encoded.
        now = (live.version, await run_in_threadpool(service.runner.position, name))
        if now != seen:
            seen = now
            record: dict[str, Any] = {"step": live.step, "steps": live.steps, "position": now[1]}
            if live.preview is not None and live.preview is not shown:
                shown = live.preview
                record |= await run_in_threadpool(_pictures, live)
            yield record
        await asyncio.sleep(PAUSE)


def _pictures(live: Live) -> dict[str, Any]:
    return {"preview": data_url(live.preview), "masks": {word: mask_url(mask) for word, mask in live.masks.items()}}


def _event(kind: str, record: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(record), event=kind, sep="\n")

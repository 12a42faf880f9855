"""The progress of a generation as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from realcustom.serving.live import Live, data_url, mask_url
from realcustom.serving.service import Service

PAUSE = 0.1  # seconds between two looks
HEARTBEAT = 15  # seconds after which a comment keeps the connection open
UNREAD = 60  # seconds that a client may take to read an event


def event_response(service: Service, name: str) -> EventSourceResponse:
    """Events of one generation: "progress" at every change, at most ten a second, and "end" once it is finished."""
    return EventSourceResponse(
        _events(service, name),
        headers={"cache-control": "no-store"},
        ping=HEARTBEAT,
        ping_message_factory=lambda: ServerSentEvent(comment="waiting"),
        sep="\n",
        send_timeout=UNREAD,
    )


async def _events(service: Service, name: str) -> AsyncIterator[ServerSentEvent]:
    live = service.runner.live(name)
    if live is not None:
        live.watchers += 1
        try:
            async for record in _progress(service, name, live):
                yield _event("progress", record)
        finally:
            live.watchers -= 1
    yield _event("end", await run_in_threadpool(lambda: service.describe_job(service.jobs.get(name))))


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

"""The progress of a generation as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from realcustom.serving.live import Live, data_url, mask_url
from realcustom.serving.service import Service

PAUSE = 0.1  # seconds between two looks
HEARTBEAT = 15.0  # seconds without news after which a comment keeps the connection open


async def events(service: Service, name: str) -> AsyncIterator[str]:
    """Events of one generation: "progress" at every change, at most ten a second, and "end" once it is finished."""
    live = service.runner.live(name)
    if live is not None:
        live.watchers += 1
        try:
            async for line in _progress(service, name, live):
                yield line
        finally:
            live.watchers -= 1
    yield _event("end", service.describe_job(service.jobs.get(name)))


async def _progress(service: Service, name: str, live: Live) -> AsyncIterator[str]:
    seen, shown, spoke = -1, None, time.monotonic()
    while not live.finished.is_set():
        if live.version != seen:
            seen, spoke = live.version, time.monotonic()
            record: dict[str, Any] = {"step": live.step, "steps": live.steps, "position": service.runner.position(name)}
            if live.preview is not None and live.preview is not shown:
                shown = live.preview
                record["preview"] = data_url(shown)
                record["masks"] = {word: mask_url(mask) for word, mask in live.masks.items()}
            yield _event("progress", record)
        elif time.monotonic() - spoke > HEARTBEAT:
            spoke = time.monotonic()
            yield ": waiting\n\n"
        await asyncio.sleep(PAUSE)


def _event(kind: str, record: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(record)}\n\n"

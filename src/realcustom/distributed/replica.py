"""One replica on Ray Serve: an engine, asked by handle. Importing this needs Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import serve

from realcustom.distributed.cluster import keep_replica_here, load_engine
from realcustom.types import Progress, Request

PREVIEW_SECONDS = 2.0  # between two previews: decoding one takes time from making, and whether anyone looks is unknown

Answer = tuple[str, Any]  # ("done", value), or ("refused", sentence) for a ValueError, which would carry a traceback


class Replica:
    """Answers of one engine. Everything that takes time runs in a thread, so that questions are answered meanwhile.

    loading: arguments of `Engine.load`. wait: seconds that a request waits for others to share its batch.
    """

    def __init__(self, loading: Mapping[str, Any], wait: float):
        keep_replica_here()
        self.engine = load_engine(loading)
        self.generate.set_max_batch_size(max(1, self.engine.batch_size))
        self.generate.set_batch_wait_timeout_s(wait if self.engine.batch_size > 1 else 0.0)

    def facts(self) -> dict[str, Any]:
        """What a front end asks once."""
        engine = self.engine
        return {"describe": engine.describe(), "batch_size": engine.batch_size, "source": engine.source}

    def resolve(self, request: Request) -> Answer:
        """`Engine.resolve`, and what requests must have in common with this one to be made together."""
        try:
            resolved = self.engine.resolve(request)
        except ValueError as error:
            return "refused", str(error)
        return "done", (resolved, self.engine.together(resolved))

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0.0)
    async def generate(self, requests: list[Request]) -> list[Answer]:
        """`Engine.run` of requests that arrived at about the same time, in as few batches as they allow."""
        return await asyncio.to_thread(self._generate, requests)

    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[Answer]:
        """`Engine.run_many`: ("progress", (index, Progress)) after every step, then the answer with all results.

        When the caller stops listening, the run ends at its next step.
        """
        loop = asyncio.get_running_loop()
        said: asyncio.Queue[Answer] = asyncio.Queue()
        unwanted = threading.Event()
        previewed: dict[int, float] = {}

        def tell(kind: str, value: Any) -> None:
            loop.call_soon_threadsafe(said.put_nowait, (kind, value))

        def told(index: int, now: Progress) -> None:
            tell("progress", (index, self._portable(now, previewed, index)))

        def work() -> None:
            try:
                tell("done", self.engine.run_many(requests, told, lambda _: unwanted.is_set()))
            except ValueError as error:
                tell("refused", str(error))
            except BaseException as error:  # whatever it is, the caller must not wait forever
                tell("failed", f"{type(error).__name__}: {error}")

        threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                kind, value = await said.get()
                yield kind, value
                if kind != "progress":
                    return
        finally:
            unwanted.set()

    def _generate(self, requests: list[Request]) -> list[Answer]:
        resolved = [self.resolve(request) for request in requests]
        good = [value[0] for kind, value in resolved if kind == "done"]
        results = iter(self.engine.run_many(good) if good else ())
        return [("done", next(results)) if kind == "done" else (kind, value) for kind, value in resolved]

    def _portable(self, now: Progress, previewed: dict[int, float], index: int) -> Progress:
        """Progress as it can travel: masks on the CPU, and decoded previews, now and then, instead of latents."""
        clock = time.monotonic()
        previews = None
        if now.latents is not None and clock - previewed.setdefault(index, clock) >= PREVIEW_SECONDS:
            previewed[index] = clock
            previews = self.engine.preview(now.latents)
        masks = {word: mask.detach().float().cpu() for word, mask in (now.masks or {}).items()}
        return replace(now, latents=previews, masks=masks)

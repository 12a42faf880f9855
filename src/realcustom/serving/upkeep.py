"""What a running server does beside its work: see whether its disk can be used, and remove what is kept long enough."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from realcustom.serving.blobs import NotHere
from realcustom.serving.limits import Limits
from realcustom.serving.records import Jobs, forget_unused
from realcustom.serving.store import Store
from realcustom.serving.trouble import storage_trouble

log = logging.getLogger(__name__)

LOOK, LOOK_AGAIN = 15.0, 2.0  # seconds between two looks at the disk: usually, and while something is wrong with it
SWEEP = 600.0  # seconds between two sweeps
SHOWN = 86400.0  # seconds that the page's own files are kept
TRASH = 86400.0  # seconds that what was put into the trash can be taken out again
UNFINISHED = 3600.0  # seconds after which nobody writes a half-written file any more


class Upkeep:
    """A thread that looks after a store until it is stopped."""

    def __init__(self, store: Store, jobs: Jobs, limits: Limits):
        self.store, self.jobs, self.limits = store, jobs, limits
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="upkeep", daemon=True)

    def start(self) -> None:
        """Begin, with a sweep."""
        self._thread.start()

    def stop(self) -> None:
        """End at once, or after the sweep that is under way."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _work(self) -> None:
        swept = float("-inf")
        while not self._ending.is_set():
            try:
                self.store.probe()
                if time.monotonic() - swept > SWEEP:
                    swept = time.monotonic()
                    sweep(self.store, self.jobs, self.limits)
            except Exception as error:
                if storage_trouble(error) is None:
                    log.exception("upkeep")
            self._pause()

    def _pause(self) -> None:
        """Until the next look at the disk, which comes early where a request has met trouble meanwhile."""
        end = time.monotonic() + LOOK
        while not self._ending.wait(LOOK_AGAIN) and time.monotonic() < end and self.store.trouble is None:
            pass


def sweep(store: Store, jobs: Jobs, limits: Limits) -> None:
    """Remove what is older than `limits` keep it, and measure what is left."""
    for blobs in (store.pictures, store.masks):
        blobs.sweep(UNFINISHED)
    sweep_files(store.folder / "studio", SHOWN)
    removed = jobs.trashed_before(time.time() - TRASH)
    if limits.keep_days is not None:
        removed += jobs.finished_before(time.time() - limits.keep_days * 86400)
    for name in dict.fromkeys(removed):
        with suppress(NotHere):  # somebody was faster
            jobs.remove(name)
    forget_unused(store, limits.days)
    store.measure()


def sweep_files(folder: Path, seconds: float) -> int:
    """Remove the files in a folder, at any depth, that came more than `seconds` ago, and empty folders; how many."""
    removed = 0
    for place, folders, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(place, name)
            try:
                # The time of a copy is that of its original; when it came here is told by the change of its entry.
                if time.time() - path.lstat().st_ctime > seconds:
                    path.unlink()
                    removed += 1
            except OSError:
                continue
        for name in folders:
            try:
                Path(place, name).rmdir()
            except OSError:
                continue  # not empty
    return removed

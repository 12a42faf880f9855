"""Ctrl-C and SIGTERM as a wish to stop after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """Whether somebody asked the run to stop."""

    def __init__(self):
        self.requested = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Notice SIGINT and SIGTERM instead of dying of them; a second one acts as usual.

    Outside the main thread, where Python allows no handlers, the request is never set.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number, frame) -> None:
        stop.requested = True
        restore()

    try:
        for number in before:
            signal.signal(number, request)
        yield stop
    finally:
        restore()

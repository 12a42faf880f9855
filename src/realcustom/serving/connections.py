"""How the server listens: a bounded number of connections, none of which may dawdle, and a log that stays short."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS = 10.0  # seconds for the head of a request, from the connection or, after an answer, from its first byte
# Seconds that a connection may rest after an answer: more than clients keep theirs, since what the server closes while
# a client begins to use it again is an error there.
REST = 75
BODY = 30.0  # seconds between two pieces of a body
UNREAD = 60.0  # seconds that an answer may wait to be read
BACKLOG = 512  # connections that may wait to be accepted
# Of those, accepted in one turn of the event loop: one too many is closed only some turns later.
ACCEPTED = 64
SPARE = 256  # file handles kept for all else: pictures, database, threads
MANY = 8192  # files that the process asks to be allowed
ANSWERS = 5  # seconds that answers under way get once nothing is made any more

REPEATS, WINDOW = 5, 60.0  # how often a message is logged within so many seconds


def listen(app, listener: socket.socket, connections: int, drain: Callable[[], None]) -> None:
    """Serve an ASGI application on a listening socket until the process is told to stop.

    connections: the most at one time; fewer where the process may not open so many files.
    drain: called in a thread of its own at the first signal to stop; requests are answered until it returns.
    """
    files = _open_files()
    config = uvicorn.Config(
        app,
        http=partial(BoundedProtocol, most=max(16, min(connections, files - SPARE - BACKLOG))),
        # Nothing here speaks websockets; the event loop and the parser are the same everywhere.
        ws="none",
        loop="asyncio",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=ACCEPTED,
        timeout_keep_alive=REST,
        timeout_graceful_shutdown=ANSWERS,
    )
    Listening(config, drain).run(sockets=[listener])


class Listening(uvicorn.Server):
    """A server whose `backlog` bounds what the event loop accepts in one turn, and not what may wait for it, and which
    goes on answering while `drain` runs."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None]):
        super().__init__(config)
        self._drain = drain
        self._draining = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop: the first one drains, the next ends at once."""
        if self._draining:
            return super().handle_exit(sig, frame)
        self._draining = True

        def finish() -> None:
            try:
                self._drain()
            finally:
                super(Listening, self).handle_exit(sig, frame)

        threading.Thread(target=finish, name="drain", daemon=True).start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)


def _open_files() -> int:
    """How many files this process may open, after asking for as many as the system grants it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > soft:
        wanted = MANY if hard == resource.RLIM_INFINITY else min(hard, MANY)
        soft = max(soft, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


class BoundedProtocol(H11Protocol):
    """HTTP on one connection, closed where its client is too slow, or is one too many.

    Where there are `most` connections, the one that has waited longest for a request gives way to a new one: whoever
    opens many and says nothing keeps nobody out.
    """

    def __init__(self, *arguments, most: int, **options):
        super().__init__(*arguments, **options)
        self.most = most
        self.silent_since: float | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        """A client came; it, or one that says nothing, goes where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            silent = [other for other in self.connections if other is not self and other.silent_since is not None]
            leaving = min(silent, key=lambda other: other.silent_since) if silent else self
            # Out of the count at once: that the socket is closed is told later.
            self.connections.discard(leaving)
            if leaving is self:
                transport.write(b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\n\r\n")
                transport.close()
                return
            leaving.transport.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client left."""
        self._reading = _cancelled(self._reading)
        self._writing = _cancelled(self._writing)
        self.silent_since = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A client sent something."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """An answer was sent; the connection rests, and uvicorn closes it after `REST`."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._reading, self.silent_since = _cancelled(self._reading), self.loop.time()
        else:
            self._watch()

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        super().pause_writing()
        self._writing = self._writing or self.loop.call_later(UNREAD, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._writing = _cancelled(self._writing)

    def _watch(self) -> None:
        """Begin to measure what the client has to do next."""
        state = self.conn.their_state
        if self.transport.is_closing() or state not in (h11.IDLE, h11.SEND_BODY):
            self._reading, self.silent_since = _cancelled(self._reading), None
        elif state is h11.SEND_BODY:
            # Every piece counts; the head of a request must come as a whole.
            self._reading, self.silent_since = _cancelled(self._reading), None
            self._reading = self.loop.call_later(BODY, self._body_is_late)
        elif self._reading is None:
            self.silent_since = self.silent_since or self.loop.time()
            self._reading = self.loop.call_later(HEADERS, self.transport.abort)

    def _body_is_late(self) -> None:
        if self.flow.read_paused:  # it is we who do not read
            self._reading = self.loop.call_later(BODY, self._body_is_late)
        else:
            self.transport.abort()


class Unrepeated(logging.Filter):
    """Lets a message pass a few times a minute; the last time it says that it will be silent."""

    def __init__(self):
        super().__init__()
        self._lock = threading.Lock()
        self._seen: dict[tuple, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged; records are the same where their texts are before values are put in."""
        if record.levelno < logging.WARNING:
            return True  # one a request, and a request costs its client something
        key, now = (record.name, record.levelno, str(record.msg)[:200]), time.monotonic()
        with self._lock:
            if len(self._seen) > 1000:
                self._seen.clear()
            begun, count = self._seen.get(key, (now, 0))
            begun, count = (now, 0) if now - begun > WINDOW else (begun, count)
            self._seen[key] = (begun, count + 1)
        if count + 1 == REPEATS:
            record.msg = f"{record.msg} (not repeated within a minute)"
        return count < REPEATS


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

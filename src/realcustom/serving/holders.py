"""Who asks: tokens with names, and what each of them may do.

The token of the request that is being answered is kept in a context variable, so that every door of the server sees
the same part of its store. Outside of a request, and on a server without tokens, everything is seen.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
import tomllib
from collections import deque
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from realcustom.checks import finite, whole
from realcustom.serving.limits import Busy

NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SHORTEST = 8  # characters of a token
MAX_PRIORITY = 9
MINUTE = 60.0


class Forbidden(PermissionError):
    """The token of the request may not do this; says so in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A token and what it may do.

    name: under which its generations are kept.
    sha256: of the token, in hex.
    admin: sees and cancels what all tokens made.
    per_minute: generations that it may ask for within a minute; None for no bound.
    share: of the queue that its waiting generations may fill, above 0 up to 1.
    priority: the highest that it may ask for, 0 to 9.
    """

    name: str
    sha256: str
    admin: bool = False
    per_minute: int | None = None
    share: float = 1.0
    priority: int = 0
    _times: deque[float] = field(default_factory=deque, init=False, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        what = f'of the token "{self.name}"'
        if not SHA256.fullmatch(self.sha256):
            raise ValueError(f"The sha256 {what} must be 64 hex digits.")
        if not isinstance(self.admin, bool):
            raise ValueError(f"admin {what} must be true or false, not {self.admin!r}.")
        if self.per_minute is not None:
            whole(f"per_minute {what}", self.per_minute, 1, 10**6)
        whole(f"The priority {what}", self.priority, 0, MAX_PRIORITY)
        if not finite(f"The share {what}", self.share, 0.0, 1.0) > 0:
            raise ValueError(f"The share {what} must be above 0.")

    def take_turn(self) -> None:
        """Count a generation; Busy where there were `per_minute` within the last minute."""
        if self.per_minute is None:
            return
        with self._lock:
            now = time.monotonic()
            while self._times and now - self._times[0] >= MINUTE:
                self._times.popleft()
            if len(self._times) >= self.per_minute:
                wait = max(1, round(MINUTE - (now - self._times[0]) + 0.5))
                raise Busy(f"This token may ask for {self.per_minute} generations a minute", wait)
            self._times.append(now)

    def check_share(self, waiting: int, queue: int) -> None:
        """Busy where so many of its generations fill its share of a queue for `queue`."""
        most = max(1, int(self.share * queue))
        if waiting >= most:
            raise Busy(f"This token's share of the queue is full ({waiting} generations wait)", 5)


class Holders:
    """All tokens of a server; empty where only this machine can reach it."""

    def __init__(self, holders: Iterable[Holder] = ()):
        self._holders = tuple(holders)

    def __bool__(self) -> bool:
        return bool(self._holders)

    def find(self, token: str) -> Holder | None:
        """Whose token this is, in a time that does not tell how near it comes to one."""
        digest = sha256_of(token)
        found = [holder for holder in self._holders if hmac.compare_digest(holder.sha256, digest)]
        return found[0] if found else None


HOLDER: ContextVar[Holder | None] = ContextVar("holder", default=None)


def owner_name() -> str:
    """The name that is kept with what is made now; "" where nobody asks with a token, or the server's only one."""
    holder = HOLDER.get()
    return "" if holder is None else holder.name


def seen_owner() -> str | None:
    """Whose things may be seen now: a name, or None for everybody's."""
    holder = HOLDER.get()
    return None if holder is None or holder.admin else holder.name


def may_see(owner: str) -> bool:
    """Whether what `owner` made may be seen now."""
    return seen_owner() in (None, owner)


def sha256_of(token: str) -> str:
    """Under what a token is known."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def single(token: str | None) -> Holders:
    """One token that may do everything, as --token gives it; without one nobody is asked."""
    if token is None:
        return Holders()
    return Holders([Holder(name="", sha256=sha256_of(token), admin=True, priority=MAX_PRIORITY)])


def read_holders(path: Path) -> Holders:
    """The tokens of a TOML file: a table for each name.

    Raises:
        ValueError: one sentence says what is wrong; it never shows a token.
    """
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The file of tokens {path} cannot be read.") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"The file of tokens {path} is no TOML: {error}.") from None
    holders = [_holder(name, entry) for name, entry in record.items()]
    if not holders:
        raise ValueError(f"The file of tokens {path} names none.")
    if len({holder.sha256 for holder in holders}) < len(holders):
        raise ValueError(f"Two names in {path} have the same token.")
    return Holders(holders)


def _holder(name: str, entry: Any) -> Holder:
    if not NAME.fullmatch(name):
        raise ValueError(f'A name of a token has 1 to 40 letters, digits, - and _, not "{name[:80]}".')
    if not isinstance(entry, Mapping):
        raise ValueError(f'The token "{name}" needs a table: [{name}] and a line token = "...".')
    entry = dict(entry)
    known = {one.name for one in fields(Holder) if one.init} - {"name"} | {"token"}
    for unknown in entry.keys() - known:
        raise ValueError(f"'{unknown}' is no setting of the token \"{name}\"; there are {', '.join(sorted(known))}.")
    if ("token" in entry) == ("sha256" in entry):
        raise ValueError(f'Give the token "{name}" as token or as sha256.')
    if "token" in entry:
        token = entry.pop("token")
        if not isinstance(token, str) or len(token) < SHORTEST:
            raise ValueError(f'The token "{name}" must have at least {SHORTEST} characters.')
        entry["sha256"] = sha256_of(token)
    if not isinstance(entry["sha256"], str):
        raise ValueError(f'The sha256 of the token "{name}" must be 64 hex digits.')
    return Holder(name=name, **entry)

"""Errors of the disk and the database, told from mistakes: they pass, and then the same can be tried again."""

from __future__ import annotations

import errno
import sqlite3

FULL = (errno.ENOSPC, errno.EDQUOT)
FAULTY = (errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class StorageTrouble(RuntimeError):
    """The data folder cannot be used for now; one sentence that names no path.

    status: of HTTP, 507 where there is no room left and 503 otherwise.
    """

    def __init__(self, sentence: str, status: int):
        super().__init__(sentence)
        self.status = status


def storage_trouble(error: BaseException) -> StorageTrouble | None:
    """What an exception says about the data folder; None where it says nothing about it."""
    if isinstance(error, StorageTrouble):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        return StorageTrouble("There is no room left on the disk of this server.", 507)
    if isinstance(error, OSError) and error.errno in FAULTY:
        return StorageTrouble("The data folder of this server cannot be used at the moment.", 503)
    if not isinstance(error, sqlite3.OperationalError):
        return None
    # The low byte is the kind; the rest says more about it.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageTrouble("There is no room left on the disk of this server.", 507)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageTrouble("Another process keeps the database of this server locked.", 503)
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM):
        return StorageTrouble("The data folder of this server cannot be used at the moment.", 503)
    return None

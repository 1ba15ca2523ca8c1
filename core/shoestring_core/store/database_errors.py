# SPDX-License-Identifier: Apache-2.0
"""Errors of the databases as messages with a hint."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import exc

from shoestring_core.errors import DatabaseUnavailable, Unavailable

_SQLITE_CONFLICTS = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_POSTGRESQL_CONFLICTS = ("40001", "40P01")

_OF_ONE_TRANSACTION = ("40", "55P03", "57014")
"""PostgreSQL failed one transaction, because of the rows that it uses; others may succeed."""

_LOCKED = (
    "Another process keeps the database locked.",
    "Try again; if it persists, find the process that has the file open.",
)

_SQLITE_MESSAGES = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_READONLY: ("The database file can't be written.", "Check the permissions of the data folder."),
    sqlite3.SQLITE_PERM: ("The database file can't be used.", "Check the permissions of the data folder."),
    sqlite3.SQLITE_IOERR: ("The disk that holds the database reports errors.", "Check the disk of the data folder."),
    sqlite3.SQLITE_CORRUPT: ("The database file is damaged.", "Restore the data folder from a backup."),
    sqlite3.SQLITE_FULL: ("The disk that holds the database is full.", "Free some space; everything then continues."),
    sqlite3.SQLITE_CANTOPEN: (
        "The database file can't be opened.",
        "Check that the data folder exists and that you may write to it.",
    ),
    sqlite3.SQLITE_NOTADB: ("The database file is not an SQLite database.", "Use another data folder or file."),
}

_POSTGRESQL_MESSAGES = {
    "08": (
        "PostgreSQL can't be reached.",
        "Check that it runs, and the host, database, user and password in SHOESTRING_DATABASE_URL.",
    ),
    "25006": ("PostgreSQL is read-only.", "Check that SHOESTRING_DATABASE_URL names the primary server."),
    "40": ("The database is too busy with other writes.", "Try again."),
    "53100": ("PostgreSQL's disk is full.", "Free some space on it; everything then continues."),
    "53": ("PostgreSQL has too few resources left.", "Try again; raise its connections or memory if it persists."),
    "55P03": ("Another process keeps the rows locked.", "Try again."),
    "57014": ("PostgreSQL took too long to answer.", "Try again."),
    "57P": ("PostgreSQL is stopping or starting.", "Try again in a moment."),
}


class RaceLost(Unavailable):
    """What a transaction had read was changed by another before it wrote: the write is run again."""


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn failures of the database into DatabaseUnavailable, or into Unavailable if only this transaction is affected;
    our own mistakes pass unchanged."""
    try:
        yield
    except exc.TimeoutError as error:
        raise DatabaseUnavailable("All database connections are in use.", hint="Try again.") from error
    except (exc.DBAPIError, sqlite3.Error) as error:  # bare sqlite3 errors come from opening a connection
        if (translated := _message_and_hint(error)) is None:
            raise
        message, hint = translated
        others_may_succeed = (_sqlstate(error) or "").startswith(_OF_ONE_TRANSACTION)
        raise (Unavailable if others_may_succeed else DatabaseUnavailable)(message, hint=hint) from error


def is_conflict(error: BaseException | None) -> bool:
    """Whether the transaction lost against another one and may be run again."""
    return _sqlite_code(error) in _SQLITE_CONFLICTS or _sqlstate(error) in _POSTGRESQL_CONFLICTS


def _message_and_hint(error: BaseException) -> tuple[str, str] | None:
    if (code := _sqlite_code(error)) is not None:
        return _SQLITE_MESSAGES.get(code)
    state = _sqlstate(error)
    if state is None:  # no answer from the server at all
        return _POSTGRESQL_MESSAGES["08"] if isinstance(error, exc.OperationalError) else None
    return next((_POSTGRESQL_MESSAGES[state[:n]] for n in (5, 3, 2) if state[:n] in _POSTGRESQL_MESSAGES), None)


def _sqlite_code(error: BaseException | None) -> int | None:
    extended: int | None = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return None if extended is None else extended & 0xFF


def _sqlstate(error: BaseException | None) -> str | None:
    state: str | None = getattr(getattr(error, "orig", error), "sqlstate", None)
    return state

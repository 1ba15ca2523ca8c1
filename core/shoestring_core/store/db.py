# SPDX-License-Identifier: Apache-2.0
"""The database: opened, read and written. SQLite for one computer, PostgreSQL for a team, with the same code.

    store = open_store("sqlite:////home/me/.shoestring/shoestring.db")
    store.migrate()
    with store.read() as db:
        job = jobs.get(db, team, job_id)
    store.write(lambda db: jobs.stop(db, job, actor="ann"))

A write is one function in one transaction, which is run again from its start after a conflict; it must have no effect
outside the database. Rows it read are values: change them with `update(...).where(...)`, never by attribute.
"""

from __future__ import annotations

import json
import logging
import math
import random
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, cast
from uuid import UUID

from sqlalchemy import (
    Connection,
    CursorResult,
    Engine,
    UpdateBase,
    create_engine,
    event,
    exc,
    insert,
    literal,
    orm,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url

from shoestring_core.errors import StoreTooNew, Unavailable
from shoestring_core.store import migrations, tables

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_RUNS = 5
"""How often a write is run before its conflict is raised as an error."""

BUSY_TIMEOUT_S = 10.0
"""How long a write waits for its turn."""

_URL_HINT = "Set SHOESTRING_DATABASE_URL to sqlite:///FILE or postgresql://USER@HOST/NAME."


def open_store(url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Store:
    """Open a database by its SQLAlchemy URL: `sqlite:///FILE`, or `postgresql://…` (psycopg 3 is filled in).

    Raises StoreTooNew if a newer version of Shoestring wrote it, Unavailable if it can't be opened.
    """
    try:
        address = make_url(url)
    except exc.ArgumentError:  # its text would repeat the password
        raise Unavailable("The database's address can't be read.", hint=_URL_HINT) from None
    if address.get_backend_name() == "sqlite":
        reader, writer = _sqlite(address, busy_timeout_s, read_only=True), _sqlite(address, busy_timeout_s)
    elif address.get_backend_name() == "postgresql":
        reader = writer = _postgresql(address, busy_timeout_s)
    else:
        raise Unavailable(
            f"{address.get_backend_name()} databases are not supported",
            hint=_URL_HINT,
        )
    store = Store(reader, writer, busy_timeout_s)
    store.revision()
    return store


@dataclass(frozen=True)
class CommitInfo:
    """What a write changed, for listeners. `tick_requested`: the control loop has something to do now."""

    teams: set[UUID]
    jobs: set[UUID]
    tick_requested: bool


class Read:
    """A read transaction: one snapshot of the database, as of its first statement."""

    def __init__(self, sql: orm.Session) -> None:
        self.sql = sql

    @cached_property
    def now(self) -> int:
        """µs UTC by the database's clock (SQLite: the host's), the same for the whole transaction."""
        if self.sql.get_bind().dialect.name == "sqlite":
            return time.time_ns() // 1000
        return int(self.sql.scalar(text("SELECT (extract(epoch FROM now()) * 1000000)::bigint")) or 0)


class Write(Read):
    """A write transaction. Events are buffered and written at its very end."""

    def __init__(self, sql: orm.Session) -> None:
        super().__init__(sql)
        self._events: list[dict[str, Any]] = []
        self._tick_requested = False

    def event(
        self,
        *,
        team: UUID,
        kind: str,
        actor: str,
        reason: str = "",
        job: UUID | None = None,
        attempt: int | None = None,
        generation: int | None = None,
        ref: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Append an event to the team's feed."""
        self._events.append(
            {"team": team, "job": job, "attempt": attempt, "generation": generation, "kind": kind,
             "actor": actor, "reason": reason, "ref": ref, "data": data or {}, "at": self.now}
        )  # fmt: skip

    def insert_new(self, table: type[tables.Base], **values: Any) -> bool:
        """Insert a row unless one with a unique key of its exists. Returns whether it was inserted."""
        # RETURNING, because psycopg gives an insert no row count.
        statement = self._insert_missing(table).values(**values).returning(literal(1))
        return self.sql.scalar(statement) is not None

    def insert_missing(self, table: type[tables.Base], rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert those rows whose unique keys don't exist yet."""
        self.sql.execute(self._insert_missing(table), rows)

    def _insert_missing(self, table: type[tables.Base]) -> postgresql.Insert | sqlite.Insert:
        if self.sql.get_bind().dialect.name == "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing()
        return sqlite.insert(table).on_conflict_do_nothing()

    def execute(self, statement: UpdateBase) -> int:
        """Run an insert, update or delete. Returns how many rows it changed."""
        # Without the option psycopg's count of an INSERT is lost.
        result = self.sql.execute(statement, execution_options={"preserve_rowcount": True})
        return cast("CursorResult[Any]", result).rowcount

    def request_tick(self) -> None:
        """Request a tick of the control loop right after the commit."""
        self._tick_requested = True

    def write_events(self) -> CommitInfo:
        """Number the events and insert them: the last statements of the transaction.

        The team's row stays locked from here to the commit, so the order of numbers is the order of commits, and a
        reader who has seen n has seen everything up to n.
        """
        self.sql.flush()
        by_team: dict[UUID, list[dict[str, Any]]] = defaultdict(list)
        for row in self._events:
            by_team[row["team"]].append(row)
        for team in sorted(by_team):
            self._assign_numbers(team, by_team[team])
        if self._events:
            self.sql.execute(insert(tables.EventRow), self._events)
        return CommitInfo(set(by_team), {row["job"] for row in self._events if row["job"]}, self._tick_requested)

    def _assign_numbers(self, team: UUID, rows: list[dict[str, Any]]) -> None:
        last = self.sql.execute(
            update(tables.TeamRow)
            .where(tables.TeamRow.id == team)
            .values(feed_seq=tables.TeamRow.feed_seq + len(rows))
            .returning(tables.TeamRow.feed_seq)
        ).scalar_one()
        for seq, row in enumerate(rows, start=last - len(rows) + 1):
            row["seq"] = seq


@dataclass
class Store:
    """One database. Safe to share between threads."""

    reader: Engine
    writer: Engine
    busy_timeout_s: float = BUSY_TIMEOUT_S
    on_commit: list[Callable[[CommitInfo], None]] = field(default_factory=list)
    """Called after each commit that wrote events or requested a tick. Their exceptions are logged, never raised."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """SQLite has one writer, and polling for its lock starves some; threads of one process queue here instead."""

    @contextmanager
    def read(self) -> Iterator[Read]:
        """A session that can't write."""
        with _translate_errors(), _session(self.reader) as sql:
            if self.reader.dialect.name == "postgresql":
                sql.connection(execution_options={"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"})
            yield Read(sql)

    def write(self, work: Callable[[Write], T], /) -> T:
        """Run `work` in one transaction and return its result.

        Raises what `work` raises, and Unavailable if the database can't be written; then nothing is changed.
        """
        give_up_at = time.monotonic() + self.busy_timeout_s
        for run in range(1, MAX_RUNS + 1):
            try:
                with _translate_errors():
                    result, committed = self._write_once(work)
            except Unavailable as error:
                if not _is_conflict(error.__cause__) or run == MAX_RUNS or time.monotonic() > give_up_at:
                    raise
                time.sleep(random.uniform(0, 0.01 * 2**run))
            else:
                self._notify(committed)
                return result
        raise AssertionError("the last run returns or raises")

    def migrate(self) -> None:
        """Upgrade the schema to this version's. Safe to run in several processes at once."""
        with _translate_errors(), self.writer.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(7305427061)"))
            _refuse_newer(connection)
            migrations.upgrade(connection)

    def revision(self) -> str | None:
        """The schema's version; None for an empty database. Raises StoreTooNew, Unavailable."""
        with _translate_errors(), self.reader.connect() as connection:
            return _refuse_newer(connection)

    def is_current(self) -> bool:
        """Whether the schema is this version's: false before `migrate`."""
        return self.revision() == migrations.head()

    def close(self) -> None:
        self.reader.dispose()
        self.writer.dispose()

    def _write_once(self, work: Callable[[Write], T]) -> tuple[T, CommitInfo]:
        with self._writer_lock(), _session(self.writer) as sql, sql.begin():
            db = Write(sql)
            result = work(db)
            return result, db.write_events()

    @contextmanager
    def _writer_lock(self) -> Iterator[None]:
        if self.writer.dialect.name != "sqlite":
            yield
            return
        if not self._lock.acquire(timeout=self.busy_timeout_s):
            raise Unavailable("The database is too busy with other writes.", hint="Try again.")
        try:
            yield
        finally:
            self._lock.release()

    def _notify(self, committed: CommitInfo) -> None:
        if not committed.teams and not committed.tick_requested:
            return
        for listener in self.on_commit:
            try:
                listener(committed)
            except Exception:
                log.exception("a listener failed after a commit; the commit stands")


# Engines


def _sqlite(address: URL, busy_timeout_s: float, *, read_only: bool = False) -> Engine:
    """WAL, so that readers never wait for the writer. BEGIN IMMEDIATE, because a transaction that reads first and then
    writes fails at once if another wrote in between, however long it would wait."""
    if not address.database or address.database == ":memory:":
        raise Unavailable("an SQLite database needs a file", hint="Use sqlite:///FILE.")
    engine = create_engine(
        address, json_serializer=_json, pool_size=20, max_overflow=20, pool_timeout=busy_timeout_s
    )  # fmt: skip

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN is deferred and skips DDL
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout_s * 1000)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute(f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if read_only:
            connection.exec_driver_sql("BEGIN DEFERRED")
        else:
            _begin_immediate(connection, busy_timeout_s)

    return engine


def _begin_immediate(connection: Connection, timeout_s: float) -> None:
    """Take the write lock, looking for it every few ms. SQLite's own handler looks every 100 ms in the end, and so
    waits for seconds beside another process that writes without pause."""
    give_up_at = time.monotonic() + timeout_s
    connection.exec_driver_sql("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            except exc.OperationalError as error:
                if not _is_conflict(error) or time.monotonic() > give_up_at:
                    raise
                time.sleep(random.uniform(0.0005, 0.003))
            else:
                return
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(timeout_s * 1000)}")


def _postgresql(address: URL, busy_timeout_s: float) -> Engine:
    """READ COMMITTED: guarded UPDATEs see the newest row, and conflicts wait instead of failing."""
    timeouts_ms = {
        "lock_timeout": int(busy_timeout_s * 1000),
        "statement_timeout": 30_000,
        "idle_in_transaction_session_timeout": 60_000,
    }
    return create_engine(
        address.set(drivername="postgresql+psycopg"),
        isolation_level="READ COMMITTED",
        json_serializer=_json,
        pool_size=10,
        max_overflow=20,
        pool_timeout=busy_timeout_s,
        pool_recycle=1800,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 5,
            "application_name": "shoestring",
            "options": " ".join(f"-c {name}={value}" for name, value in timeouts_ms.items()),
        },
    )


def _json(value: Any) -> str:
    return json.dumps(_storable(value), allow_nan=False)


def _storable(value: Any) -> Any:
    """JSON has no word for NaN and infinities; they become text, as on the wire."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return tables.storable(value)
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list | tuple) else value


def _session(engine: Engine) -> orm.Session:
    # populate_existing: a row read again is what the database says now, also after an UPDATE by statement.
    return orm.Session(
        engine,
        expire_on_commit=False,
        execution_options={"populate_existing": True, "synchronize_session": False},
    )


def _refuse_newer(connection: Connection) -> str | None:
    revision = migrations.revision(connection)
    if revision is not None and revision not in migrations.known():
        raise StoreTooNew(
            f"The database has schema {revision}; this version of Shoestring knows up to {migrations.head()}.",
            hint="Upgrade Shoestring (pip install --upgrade shoestring), or use another data folder.",
        )
    return revision


# Errors

_SQLITE_CONFLICTS = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_POSTGRESQL_CONFLICTS = ("40001", "40P01")

_LOCKED = (
    "Another process keeps the database locked.",
    "Try again; if it persists, find the process that has the file open.",
)

_SQLITE_PROBLEMS = {
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

_POSTGRESQL_PROBLEMS = {
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


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Turn failures of the database into Unavailable; our own mistakes pass unchanged."""
    try:
        yield
    except exc.TimeoutError as error:
        raise Unavailable("All database connections are in use.", hint="Try again.") from error
    except (exc.DBAPIError, sqlite3.Error) as error:  # bare sqlite3 errors come from opening a connection
        if (problem := _problem(error)) is None:
            raise
        message, hint = problem
        raise Unavailable(message, hint=hint) from error


def _problem(error: BaseException) -> tuple[str, str] | None:
    if (code := _sqlite_code(error)) is not None:
        return _SQLITE_PROBLEMS.get(code)
    state = _sqlstate(error)
    if state is None:  # no answer from the server at all
        return _POSTGRESQL_PROBLEMS["08"] if isinstance(error, exc.OperationalError) else None
    return next((_POSTGRESQL_PROBLEMS[state[:n]] for n in (5, 3, 2) if state[:n] in _POSTGRESQL_PROBLEMS), None)


def _is_conflict(error: BaseException | None) -> bool:
    return _sqlite_code(error) in _SQLITE_CONFLICTS or _sqlstate(error) in _POSTGRESQL_CONFLICTS


def _sqlite_code(error: BaseException | None) -> int | None:
    extended: int | None = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return None if extended is None else extended & 0xFF


def _sqlstate(error: BaseException | None) -> str | None:
    state: str | None = getattr(getattr(error, "orig", error), "sqlstate", None)
    return state

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

import logging
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, TypeVar, TypeVarTuple, cast
from uuid import UUID

from sqlalchemy import (
    Connection,
    CursorResult,
    Engine,
    Insert,
    Row,
    UpdateBase,
    bindparam,
    exc,
    insert,
    literal,
    orm,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.sql.selectable import TypedReturnsRows

from shoestring_core.errors import DatabaseUnavailable, ShoestringError, StoreTooNew, Unavailable
from shoestring_core.events import EventData
from shoestring_core.store import migrations, tables
from shoestring_core.store.database_errors import is_conflict, translate_errors
from shoestring_core.store.engines import postgresql_engine, sqlite_engine
from shoestring_core.wording import Reason

log = logging.getLogger(__name__)
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_RUNS = 5
"""How often a write is run before its conflict is raised as an error."""

BUSY_TIMEOUT_S = 10.0
"""How long a write waits for its turn."""

MAX_BATCH = 64
"""How many batched writes share a transaction at most."""

NOT_SCHEDULED_FROM = frozenset({"batch", "agent", "wait"})
"""Kinds of events that no schedule depends on: reports of machines, and what the scheduler itself writes."""


def open_store(url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Store:
    """Open a database by its SQLAlchemy URL: `sqlite:///FILE`, or `postgresql://…` (psycopg 3 is filled in).

    Raises StoreTooNew if a newer version of Shoestring wrote it, Unavailable if it can't be opened.
    """
    try:
        address = make_url(url)
    except exc.ArgumentError:  # its text would repeat the password
        raise _invalid_url("The database URL is invalid.") from None
    if address.get_backend_name() == "sqlite":
        reader, writer = sqlite_engine(address, busy_timeout_s, read_only=True), sqlite_engine(address, busy_timeout_s)
    elif address.get_backend_name() == "postgresql":
        reader = writer = postgresql_engine(address, busy_timeout_s)
    else:
        raise _invalid_url(f"{address.get_backend_name()} databases are not supported.")
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
        return int(self.connection.scalar(_POSTGRESQL_CLOCK) or 0)

    def row(self, query: TypedReturnsRows[*Ts], **parameters: Any) -> Row[*Ts] | None:
        """The first row of a query of columns. See `rows`."""
        return self.connection.execute(query, parameters).first()

    def rows(self, query: TypedReturnsRows[*Ts], **parameters: Any) -> Sequence[Row[*Ts]]:
        """The rows of a query of columns.

        For queries that each request makes: SQLAlchemy takes seven times as long to build one and to run it in a
        session as to run one that is kept, with `bindparam`s, on the connection.
        """
        return self.connection.execute(query, parameters).all()

    @cached_property
    def connection(self) -> Connection:
        return self.sql.connection()


class Write(Read):
    """A write transaction. Events are buffered and written at its very end."""

    def __init__(self, sql: orm.Session) -> None:
        super().__init__(sql)
        self._events: list[dict[str, Any]] = []
        self._tick_requested = False

    def event(
        self,
        data: EventData,
        *,
        team: UUID,
        actor: str,
        reason: Reason | None = None,
        job: UUID | None = None,
        attempt: int | None = None,
        generation: int | None = None,
    ) -> None:
        """Append an event to the team's feed."""
        content = data.model_dump(mode="json", exclude_defaults=True)
        self._events.append(
            {"team": team, "job": job, "attempt": attempt, "generation": generation, "kind": data.kind,
             "actor": actor, "reason": reason.as_json() if reason else None, "data": content, "at": self.now}
        )  # fmt: skip

    def insert_new(self, table: type[tables.Base], **values: Any) -> bool:
        """Insert a row unless one with a unique key of its exists. Returns whether it was inserted."""
        return self.row(_insert_new(table, self.sql.get_bind().dialect.name), **values) is not None

    def insert(self, table: type[tables.Base], **values: Any) -> None:
        """Insert a row."""
        self.connection.execute(_insert(table), values)

    def insert_missing(self, table: type[tables.Base], rows: Sequence[Mapping[str, Any]]) -> int:
        """Insert those rows whose unique keys don't exist yet. Returns how many it inserted."""
        return self.execute(_insert_missing(table, self.sql.get_bind().dialect.name), rows)

    def execute(self, statement: UpdateBase, rows: Sequence[Mapping[str, Any]] | None = None) -> int:
        """Run an insert, update or delete; for each of `rows` if given. Returns how many rows it changed."""
        # Without the option psycopg's count of an INSERT is lost.
        result = self.sql.execute(statement, rows, execution_options={"preserve_rowcount": True})
        return cast("CursorResult[Any]", result).rowcount

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what is written within, events included, if it raises; the transaction continues."""
        events, tick_requested = len(self._events), self._tick_requested
        try:
            with self.sql.begin_nested():
                yield
        except BaseException:
            del self._events[events:]
            self._tick_requested = tick_requested
            raise

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
            self.connection.execute(_insert(tables.EventRow), self._events)
        return CommitInfo(set(by_team), {row["job"] for row in self._events if row["job"]}, self._tick_requested)

    def _assign_numbers(self, team: UUID, rows: list[dict[str, Any]]) -> None:
        changes = sum(row["kind"] not in NOT_SCHEDULED_FROM for row in rows)
        (last,) = self.rows(_COUNT_EVENTS, team=team, events=len(rows), changes=changes)[0]
        for seq, row in enumerate(rows, start=last - len(rows) + 1):
            row["seq"] = seq


@cache
def _insert(row: type[tables.Base]) -> Insert:
    return insert(row.metadata.tables[row.__tablename__])


@cache
def _insert_missing(row: type[tables.Base], dialect: str) -> postgresql.Insert | sqlite.Insert:
    table = row.metadata.tables[row.__tablename__]  # an ORM insert of many rows would not count them
    of_dialect = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return of_dialect(table).on_conflict_do_nothing()


@cache
def _insert_new(row: type[tables.Base], dialect: str) -> TypedReturnsRows[int]:
    return _insert_missing(row, dialect).returning(literal(1))  # psycopg gives an insert no row count


_COUNT_EVENTS = (
    update(tables.TeamRow)
    .where(tables.TeamRow.id == bindparam("team"))
    .values(
        feed_seq=tables.TeamRow.feed_seq + bindparam("events"),
        schedule_changes=tables.TeamRow.schedule_changes + bindparam("changes"),
    )
    .returning(tables.TeamRow.feed_seq)
)


@dataclass
class BatchedWrite:
    """A write that shares its transaction with others. The outcome is set after the commit."""

    work: Callable[[Write], Any]
    outcome: Future[Any] = field(default_factory=Future)

    def run(self, db: Write) -> tuple[Any, BaseException | None]:
        """The result or the refusal of this write, which then changes nothing."""
        try:
            with db.savepoint():
                return self.work(db), None
        except ShoestringError as refusal:
            return None, refusal


@dataclass
class Store:
    """One database. Safe to share between threads."""

    reader: Engine
    writer: Engine
    busy_timeout_s: float = BUSY_TIMEOUT_S
    on_commit: list[Callable[[CommitInfo], None]] = field(default_factory=list)
    """Called after each commit that wrote events or requested a tick. Their exceptions are logged, never raised."""
    _lock: threading.RLock = field(default_factory=threading.RLock)
    """SQLite has one writer, and polling for its lock starves some; threads of one process queue here instead."""
    _waiting: deque[BatchedWrite] = field(default_factory=deque)
    """For the next thread that has the lock."""

    @contextmanager
    def read(self) -> Iterator[Read]:
        """A session that can't write."""
        with translate_errors(), _session(self.reader) as sql:
            if self.reader.dialect.name == "postgresql":
                sql.connection(execution_options={"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"})
            yield Read(sql)

    def write(self, work: Callable[[Write], T], /, *, batch: bool = False) -> T:
        """Run `work` in one transaction and return its result.

        batch  for many small writes: those that wait for SQLite's one writer share a transaction and a disk sync.
               PostgreSQL commits concurrently, so there each keeps its own

        Raises what `work` raises; Unavailable if its conflict with others persists, DatabaseUnavailable if the database
        can't be written. Then nothing is changed.
        """
        if batch and self.writer.dialect.name == "sqlite":
            return self._write_in_batch(work)
        give_up_at = time.monotonic() + self.busy_timeout_s
        for run in range(1, MAX_RUNS + 1):
            try:
                with translate_errors():
                    result, committed = self._write_once(work)
            except Unavailable as error:
                if not is_conflict(error.__cause__) or run == MAX_RUNS or time.monotonic() > give_up_at:
                    raise
                time.sleep(random.uniform(0, 0.01 * 2**run))
            else:
                self._notify(committed)
                return result
        raise AssertionError("the last run returns or raises")

    def migrate(self) -> None:
        """Upgrade the schema to this version's. Safe to run in several processes at once."""
        with translate_errors(), self.writer.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(7305427061)"))
            _refuse_newer(connection)
            migrations.upgrade(connection)

    def revision(self) -> str | None:
        """The schema's version; None for an empty database. Raises StoreTooNew, Unavailable."""
        with translate_errors(), self.reader.connect() as connection:
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

    def _write_in_batch(self, work: Callable[[Write], T]) -> T:
        """The first thread that gets the lock runs the writes of all that wait for it."""
        mine = BatchedWrite(work)
        self._waiting.append(mine)
        try:
            with self._writer_lock():
                while not mine.outcome.done():
                    waiting = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
                    self._run_batch([one for one in waiting if one.outcome.set_running_or_notify_cancel()])
        except Unavailable:
            if mine.outcome.cancel():
                raise
        result: T = mine.outcome.result()
        return result

    def _run_batch(self, batch: list[BatchedWrite]) -> None:
        try:
            outcomes = self.write(lambda db: [one.run(db) for one in batch])
        except BaseException as error:  # noqa: BLE001 - each thread raises its own
            if len(batch) > 1 and isinstance(error, Exception) and not isinstance(error, ShoestringError):
                for one in batch:  # an unexpected error in one write fails no other
                    self._run_batch([one])
                return
            outcomes = [(None, error) for _ in batch]
        for one, (result, failure) in zip(batch, outcomes, strict=True):
            if failure is None:
                one.outcome.set_result(result)
            else:
                one.outcome.set_exception(failure)

    @contextmanager
    def _writer_lock(self) -> Iterator[None]:
        if self.writer.dialect.name != "sqlite":
            yield
            return
        if not self._lock.acquire(timeout=self.busy_timeout_s):
            raise DatabaseUnavailable("The database is too busy with other writes.", hint="Try again.")
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


_POSTGRESQL_CLOCK = text("SELECT (extract(epoch FROM now()) * 1000000)::bigint")


def _invalid_url(message: str) -> Unavailable:
    return Unavailable(message, hint="Set SHOESTRING_DATABASE_URL to sqlite:///FILE or postgresql://USER@HOST/NAME.")


def _session(engine: Engine) -> orm.Session:
    # populate_existing: a row read again has its current values, also after an UPDATE by statement.
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

# SPDX-License-Identifier: Apache-2.0
"""The database: opened, read and written. SQLite for one computer, PostgreSQL for a team, with the same code.

    store = open_store("sqlite:////home/me/.shoestring/shoestring.db")
    store.migrate()
    with store.read() as db:
        job = jobs.get(db, team, job_id)
    store.write(lambda db: jobs.stop(db, job, actor="ann"))

A write is one function in one transaction, which is run again from its start after a conflict; it must have no effect
outside the database.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, exc, text
from sqlalchemy.engine import make_url

from shoestring_core.errors import DatabaseUnavailable, StoreTooNew, Unavailable
from shoestring_core.store import migrations
from shoestring_core.store.database_errors import RaceLost, is_conflict, translate_errors
from shoestring_core.store.engines import postgresql_engine, sqlite_engine
from shoestring_core.store.transactions import CommitInfo, Read, Write

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_RUNS = 5
"""How often a write is run before its conflict is raised as an error."""

BUSY_TIMEOUT_S = 10.0
"""How long a write waits for its turn."""

MAX_BATCH = 64
"""How many batched writes share a transaction at most."""


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


@dataclass
class BatchedWrite:
    """A write that shares its transaction with others. The outcome is set after the commit."""

    work: Callable[[Write], Any]
    outcome: Future[Any] = field(default_factory=Future)


@dataclass
class Store:
    """One database. Safe to share between threads."""

    reader: Engine
    writer: Engine
    busy_timeout_s: float = BUSY_TIMEOUT_S
    on_commit: list[Callable[[CommitInfo], None]] = field(default_factory=list)
    """Called after each commit that wrote events or requested a tick. Their exceptions are logged, never raised."""
    _lock: threading.RLock = field(default_factory=threading.RLock)
    """SQLite has one writer, and polling for its lock starves some; threads of one process queue here instead. On
    PostgreSQL only writes that share a transaction queue."""
    _waiting: deque[BatchedWrite] = field(default_factory=deque)
    """For the next thread that has the lock."""

    @contextmanager
    def read(self, *, snapshot: bool = True) -> Iterator[Read]:
        """A session that can't write.

        snapshot  False for what needs a single statement: PostgreSQL is spared its BEGIN and ROLLBACK
        """
        with translate_errors(), self.reader.connect() as connection:
            if connection.dialect.name == "postgresql":
                options = {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}
                connection.execution_options(**options if snapshot else {"isolation_level": "AUTOCOMMIT"})
            with closing(Read(connection)) as db:
                yield db

    def write(self, work: Callable[[Write], T], /, *, batch: bool = False, only_inserts: bool = False) -> T:
        """Run `work` in one transaction and return its result.

        batch         for many small writes: those that wait for SQLite's one writer share a transaction and a disk
                      sync. PostgreSQL commits concurrently, so there each keeps its own,
        only_inserts  but for those that lock no rows of others before the feed: any order of them is the same, so that
                      they share one there too, which takes a third of their statements

        Raises what `work` raises; Unavailable if its conflict with others persists, DatabaseUnavailable if the database
        can't be written. Then nothing is changed.
        """
        if batch and (only_inserts or self.writer.dialect.name == "sqlite"):
            return self._write_in_batch(work)
        give_up_at = time.monotonic() + self.busy_timeout_s
        for run in range(1, MAX_RUNS + 1):
            try:
                with translate_errors():
                    result, committed = self._write_once(work)
            except Unavailable as error:
                conflict = isinstance(error, RaceLost) or is_conflict(error.__cause__)
                if not conflict or run == MAX_RUNS or time.monotonic() > give_up_at:
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
        turn = self._turn() if self.writer.dialect.name == "sqlite" else nullcontext()
        with turn, self.writer.connect() as connection, closing(Write(connection)) as db:
            result = work(db)
            committed = db.finish()
            connection.commit()  # an error before it rolls everything back, as the connection is closed
            return result, committed

    def _write_in_batch(self, work: Callable[[Write], T]) -> T:
        """The first thread whose turn it is runs the writes of all that wait for it."""
        mine = BatchedWrite(work)
        self._waiting.append(mine)
        try:
            with self._turn():
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
            results = self.write(lambda db: [one.work(db) for one in batch])
        except BaseException as error:  # noqa: BLE001 - each thread raises its own
            if len(batch) > 1 and isinstance(error, Exception) and not isinstance(error, Unavailable):
                for one in batch:  # one that is refused or fails changes nothing, and fails no other
                    self._run_batch([one])
                return
            for one in batch:
                one.outcome.set_exception(error)
            return
        for one, result in zip(batch, results, strict=True):
            one.outcome.set_result(result)

    @contextmanager
    def _turn(self) -> Iterator[None]:
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


def _invalid_url(message: str) -> Unavailable:
    return Unavailable(message, hint="Set SHOESTRING_DATABASE_URL to sqlite:///FILE or postgresql://USER@HOST/NAME.")


def _refuse_newer(connection: Connection) -> str | None:
    revision = migrations.revision(connection)
    if revision is not None and revision not in migrations.known():
        raise StoreTooNew(
            f"The database has schema {revision}; this version of Shoestring knows up to {migrations.head()}.",
            hint="Upgrade Shoestring (pip install --upgrade shoestring), or use another data folder.",
        )
    return revision

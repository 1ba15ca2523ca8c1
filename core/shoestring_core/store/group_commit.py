# SPDX-License-Identifier: Apache-2.0
"""Group commit: many small writes in one transaction and one disk sync, for a database with a single writer.

The thread that gets the writer runs the writes of all waiting threads as well. On PostgreSQL, which commits
transactions concurrently, each write is its own transaction.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from shoestring_core.errors import ShoestringError
from shoestring_core.store.db import Store, Write

T = TypeVar("T")

MAX_GROUP = 64


class GroupCommit:
    """For writes that raise before they record an event, or not at all."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._concurrent = store.writer.dialect.name != "sqlite"
        self._writer = threading.Lock()
        self._waiting: list[_PendingWrite[object]] = []
        self._queue_lock = threading.Lock()

    def write(self, work: Callable[[Write], T], /) -> T:
        """As `Store.write`: regroup after the commit; raises what `work` raises, whose changes are then rolled back."""
        if self._concurrent:
            return self._store.write(work)
        pending = _PendingWrite(work)
        with self._queue_lock:
            self._waiting.append(pending)  # type: ignore[arg-type] # the queue ignores results
        with self._writer:
            while not pending.done:
                with self._queue_lock:
                    group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
                self._commit(group)
        return pending.result()

    def _commit(self, group: list[_PendingWrite[object]]) -> None:
        try:
            self._store.write(lambda db: _run(db, group))
        except Exception as error:  # noqa: BLE001 - it is raised again in its own thread
            if len(group) > 1 and not isinstance(
                error, ShoestringError
            ):  # an unexpected error in one write fails no other
                for pending in group:
                    self._commit([pending])
                return
            for pending in group:
                pending.error = error
        for pending in group:
            pending.done = True


class _PendingWrite(Generic[T]):
    def __init__(self, work: Callable[[Write], T]) -> None:
        self._work = work
        self._result: list[T] = []
        self.error: BaseException | None = None
        self.done = False

    def run(self, db: Write) -> None:
        """Run within a savepoint, so that a failing write affects no other. May be run again from its start."""
        self._result, self.error = [], None
        try:
            with db.sql.begin_nested():
                self._result.append(self._work(db))
        except ShoestringError as error:
            self.error = error

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return self._result[0]


def _run(db: Write, group: list[_PendingWrite[object]]) -> None:
    for pending in group:
        pending.run(db)

# SPDX-License-Identifier: Apache-2.0
"""Many small writes in one transaction, for a database that has one writer: the disk is asked to sync once for all.

Whoever finds the writer free takes along everybody who has come to wait meanwhile. On PostgreSQL, which commits many
transactions side by side, each write stays its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from shoestring_core.errors import ShoestringError
from shoestring_core.store.db import Store, Write

T = TypeVar("T")

AT_ONCE = 64


class GroupCommit:
    """For writes that fail before they tell the feed anything, or not at all."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._alone = store.writer.dialect.name != "sqlite"
        self._writer = threading.Lock()
        self._waiting: list[_Turn[object]] = []
        self._line = threading.Lock()

    def write(self, work: Callable[[Write], T], /) -> T:
        """As `Store.write`: returns after the commit, raises what `work` raises, and then nothing of it is kept."""
        if self._alone:
            return self._store.write(work)
        turn = _Turn(work)
        with self._line:
            self._waiting.append(turn)  # type: ignore[arg-type] # the line doesn't look at results
        with self._writer:
            while not turn.over:
                with self._line:
                    turns, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
                self._commit(turns)
        return turn.outcome()

    def _commit(self, turns: list[_Turn[object]]) -> None:
        try:
            self._store.write(lambda db: _run(db, turns))
        except Exception as error:  # noqa: BLE001 - whatever it was, it is raised again where it belongs
            if len(turns) > 1 and not isinstance(error, ShoestringError):  # a mistake of one takes nobody with it
                for turn in turns:
                    self._commit([turn])
                return
            for turn in turns:
                turn.error = error
        for turn in turns:
            turn.over = True


class _Turn(Generic[T]):
    def __init__(self, work: Callable[[Write], T]) -> None:
        self._work = work
        self._result: list[T] = []
        self.error: BaseException | None = None
        self.over = False

    def run(self, db: Write) -> None:
        """Within a savepoint, so that one that fails takes nobody with it. May be run again from its start."""
        self._result, self.error = [], None
        try:
            with db.sql.begin_nested():
                self._result.append(self._work(db))
        except ShoestringError as error:
            self.error = error

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return self._result[0]


def _run(db: Write, turns: list[_Turn[object]]) -> None:
    for turn in turns:
        turn.run(db)

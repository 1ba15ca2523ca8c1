# SPDX-License-Identifier: Apache-2.0
"""A database that the tests of a process use one after another, each finding it empty.

An engine remembers the statements that it has compiled. Tests with engines of their own compile the same ones again and
again, which takes a third of their time.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from shoestring_core.decide.queue import HALF_LIFE
from shoestring_core.store import migrations
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.tables import Base

ready_made: Path | None = None
"""An empty SQLite database with today's schema, if there is one: to copy it is faster than to migrate another."""


class SharedDatabase:
    """An empty database with today's schema. `template`: a copy of the file, if it is SQLite's."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._store = open_store(url)
        database = self._store.writer.url.database or ""
        if ready_made and self._store.writer.dialect.name == "sqlite":
            shutil.copy(ready_made, database)
        else:
            self._store.migrate()
        self._store.close()
        self._file = Path(database) if self._store.writer.dialect.name == "sqlite" else None
        self.template = Path(shutil.copy(database, f"{database}.empty")) if self._file else None

    def store(self) -> Store:
        """As `open_store` gives it: nobody listens to its commits."""
        return Store(self._store.reader, self._store.writer, self._store.busy_timeout_s)

    def empty(self) -> None:
        """Make it as it was at first, and close the connections."""
        if self._file and self.template:
            self._store.close()
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._file}{suffix}").unlink(missing_ok=True)
            shutil.copy(self.template, self._file)
        else:
            self._delete_rows()
            self._store.close()

    def _delete_rows(self) -> None:
        assert self._store.revision() == migrations.head()
        emptied = [f"DELETE FROM {name}" for name in Base.metadata.tables if name != "scheduler"]
        emptied.append(f"UPDATE scheduler SET plan_version = 0, recent_half_life = {HALF_LIFE}")
        with self._store.writer.begin() as connection:  # no foreign keys, and transfers may go
            connection.exec_driver_sql("; ".join(["SET LOCAL session_replication_role = replica", *emptied]))

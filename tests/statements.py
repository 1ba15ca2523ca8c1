# SPDX-License-Identifier: Apache-2.0
"""The statements that a store sends to its database: how many, and whether one reads a whole table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from shoestring_core.store.db import Store
from sqlalchemy import event


@dataclass
class Statements:
    selects: list[tuple[str, Any]] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    transactions: int = 0

    @property
    def reads(self) -> int:
        return len(self.selects)

    def scans(self, store: Store, table: str) -> list[str]:
        """The SELECTs that read or sort all rows of a table instead of using an index, by SQLite's plan."""
        found = []
        with store.reader.connect() as connection:
            for statement, parameters in self.selects:
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
                steps = [step for *_, step in plan]
                sorts = steps[0].startswith(f"SEARCH {table} ") and any("TEMP B-TREE" in step for step in steps)
                if sorts or any(step.startswith(f"SCAN {table}") for step in steps):
                    found.append(f"{statement}: {steps}")
        return found


@contextmanager
def counted(store: Store) -> Iterator[Statements]:
    """Count the statements from here to the end of the block. One that is run for many rows counts once."""
    statements = Statements()

    def count(connection, cursor, statement, parameters, context, many) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            statements.writes.append(statement)
        elif statement.startswith(("SELECT", "WITH")):
            statements.selects.append((statement, parameters))

    def begin(connection) -> None:
        statements.transactions += 1

    engines = {store.reader, store.writer}
    for engine in engines:
        event.listen(engine, "before_cursor_execute", count)
        event.listen(engine, "begin", begin)
    try:
        yield statements
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", count)
            event.remove(engine, "begin", begin)

# SPDX-License-Identifier: Apache-2.0
"""Counts the statements that a store sends to its database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from shoestring_core.store.db import Store
from sqlalchemy import event


@dataclass
class Statements:
    reads: int = 0
    writes: list[str] = field(default_factory=list)


@contextmanager
def counted(store: Store) -> Iterator[Statements]:
    """Count the statements from here to the end of the block. One that is run for many rows counts once."""
    statements = Statements()

    def count(connection, cursor, statement, parameters, context, many) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            statements.writes.append(statement)
        elif statement.startswith(("SELECT", "WITH")):
            statements.reads += 1

    engines = {store.reader, store.writer}
    for engine in engines:
        event.listen(engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", count)

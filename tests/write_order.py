# SPDX-License-Identifier: Apache-2.0
"""Watches that every transaction updates rows in the one order that keeps writers from waiting in a circle."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from shoestring_core.store.db import Store
from shoestring_core.store.tables import WRITE_ORDER, AccountRow
from sqlalchemy import event, select

_UPDATE = re.compile(r"UPDATE (\w+)")
_ORDER = [*WRITE_ORDER[:-1], "teams"]  # the feed locks its team's row, last of all
_NO_ROW = UUID(int=0)

Update = tuple[str, UUID]
"""Table and row; the zero id where the statement doesn't name one row by its id."""


@contextmanager
def watch(store: Store) -> Iterator[Callable[[], list[list[Update]]]]:
    """Record the updates of `store` within the block; the function gives the transactions that broke the order."""
    transactions: dict[object, list[Update]] = defaultdict(list)

    def record(connection, cursor, statement, parameters, context, many) -> None:
        updated = _UPDATE.match(statement)
        if updated and updated[1] in _ORDER:
            values = context.compiled_parameters[0] if context.compiled else {}
            transactions[connection.get_transaction()].append((updated[1], values.get("id_1", _NO_ROW)))

    def out_of_order() -> list[list[Update]]:
        with store.read() as db:
            levels = dict(db.sql.execute(select(AccountRow.id, AccountRow.level)).all())
        return [updates for updates in transactions.values() if not _in_order(updates, levels)]

    event.listen(store.writer, "before_cursor_execute", record)
    try:
        yield out_of_order
    finally:
        event.remove(store.writer, "before_cursor_execute", record)


def _in_order(updates: list[Update], levels: dict[UUID, int]) -> bool:
    """By table, accounts from the leaves to the root, rows by id. A row that is updated again is locked already."""
    first = dict.fromkeys(updates)
    keys = [(_ORDER.index(table), -levels.get(row, 0), row) for table, row in first]
    return keys == sorted(keys)

# SPDX-License-Identifier: Apache-2.0
"""What a function of the store is given: a transaction that reads, or one that writes and records events.

Rows that are read are values: change them with `update(...).where(...)`, never by attribute.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, Self, TypeVar, TypeVarTuple, cast
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Connection,
    CursorResult,
    Insert,
    Row,
    Select,
    UpdateBase,
    bindparam,
    insert,
    literal,
    orm,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm.attributes import manager_of_class
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.schema import CallableColumnDefault, ScalarElementColumnDefault
from sqlalchemy.sql.selectable import TypedReturnsRows

from shoestring_core.events import BatchStored, EventData
from shoestring_core.store import tables
from shoestring_core.wording import Reason

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
TableRow = TypeVar("TableRow", bound=tables.Base)

NOT_SCHEDULED_FROM = frozenset({"batch", "agent", "wait", "soft_line", "soft_lines", "forecast"})
"""Kinds of events that no schedule depends on: reports of machines, what the scheduler itself writes, soft lines."""


@dataclass(frozen=True)
class CommitInfo:
    """What a write changed, for listeners.

    teams           whose feed has new events: live streams read them
    jobs            whose machines may have new orders, which are held until they change. A batch of points gives none,
                    and comes four times a second while somebody looks
    tick_requested  the control loop has something to do now
    """

    teams: set[UUID]
    jobs: set[UUID]
    tick_requested: bool


CLOCK = "clock"


class clock(FunctionElement[int]):  # noqa: N801 - a function in SQL
    """µs UTC by the database's clock, the same for a whole transaction; NULL on SQLite, whose clock is the host's."""

    inherit_cache = True
    name = CLOCK
    type = BigInteger()


@compiles(clock, "sqlite")
def _null(*_: Any, **__: Any) -> str:
    return "NULL"


@compiles(clock, "postgresql")
def _now(*_: Any, **__: Any) -> str:
    return "(extract(epoch FROM now()) * 1000000)::bigint"


def with_clock(query: Select[TableRow]) -> Select[TableRow, int]:
    """The query with the database's clock beside each row."""
    return query.add_columns(clock().label(CLOCK))


class Read:
    """A read transaction: one snapshot of the database, as of its first statement."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._loaded: dict[tuple[Any, ...], Any] = {}

    @cached_property
    def sql(self) -> orm.Session:
        """For queries of whole rows. It is opened by the first one, because most requests need none."""
        # populate_existing: a row read again has its current values, also after an UPDATE by statement.
        return orm.Session(
            self.connection,
            join_transaction_mode="rollback_only",  # the connection's owner commits
            expire_on_commit=False,
            execution_options={"populate_existing": True, "synchronize_session": False},
        )

    def close(self) -> None:
        if "sql" in vars(self):
            self.sql.close()

    def once(self, load: Callable[[Self, *Ts], T], *arguments: *Ts) -> T:
        """What `load` returns, loaded at most once in the transaction: for what several of its steps need and none
        writes. Also for several writes that share it."""
        key = (load, *arguments)
        if key not in self._loaded:
            self._loaded[key] = load(self, *arguments)
        loaded: T = self._loaded[key]
        return loaded

    @cached_property
    def now(self) -> int:
        """µs UTC by the database's clock (SQLite: the host's), the same for the whole transaction."""
        if self.connection.dialect.name == "sqlite":
            return time.time_ns() // 1000
        return int(self.connection.scalar(_CLOCK) or 0)

    def row(self, query: TypedReturnsRows[*Ts], **parameters: Any) -> Row[*Ts] | None:
        """The first row of a query of columns. See `rows`."""
        return self.connection.execute(query, parameters).first()

    def rows(self, query: TypedReturnsRows[*Ts], **parameters: Any) -> Sequence[Row[*Ts]]:
        """The rows of a query of columns.

        For queries that each request makes: SQLAlchemy takes seven times as long to build one and to run it in a
        session as to run one that is kept, with `bindparam`s, on the connection.
        """
        return self.connection.execute(query, parameters).all()

    def values(
        self,
        table: type[TableRow],
        query: TypedReturnsRows[TableRow] | TypedReturnsRows[TableRow, int],
        **parameters: Any,
    ) -> list[TableRow]:
        """The whole rows of a query, which has to be kept as for `rows`. No session knows them, and none is opened.

        A query `with_clock` spares the statement that `now` takes otherwise.
        """
        new = manager_of_class(table).new_instance
        loaded = []
        for columns in self.connection.execute(query, parameters).mappings():
            row: TableRow = new()
            vars(row).update(columns)
            if clock := vars(row).pop(CLOCK, None):
                vars(self).setdefault("now", clock)
            loaded.append(row)
        return loaded


class Write(Read):
    """A write transaction. Events, and what is deferred, are buffered and written at its very end."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._events: list[dict[str, Any]] = []
        self._deferred: list[tuple[UpdateBase, dict[str, Any]]] = []
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
        return self.row(_insert_new(table, self.connection.dialect.name), **values) is not None

    def insert(self, row: tables.Base, *, defer: bool = False) -> None:
        """Insert a new row, which then has its columns' defaults too: it need not be read again. defer: see `defer`."""
        values = {name: value for name, value in vars(row).items() if name != "_sa_instance_state"}
        for name, default in _defaults(type(row)):
            if name not in values:
                values[name] = default(None)
                setattr(row, name, values[name])
        if defer:
            self.defer(_insert(type(row)), values)
        else:
            self.connection.execute(_insert(type(row)), values)

    def defer(self, statement: UpdateBase, values: dict[str, Any]) -> None:
        """Run a kept statement at the end, just before the events: nothing in the transaction reads what it writes.

        Writes that share a transaction share one execution of it, which costs a fifth of one for each.
        """
        self._deferred.append((statement, values))

    def insert_missing(self, table: type[tables.Base], rows: Sequence[Mapping[str, Any]]) -> int:
        """Insert those rows whose unique keys don't exist yet. Returns how many it inserted."""
        return self.execute(_insert_missing(table, self.connection.dialect.name), rows)

    def execute(self, statement: UpdateBase, rows: Sequence[Mapping[str, Any]] | None = None) -> int:
        """Run an insert, update or delete; for each of `rows` if given. Returns how many rows it changed."""
        # Without the option psycopg's count of an INSERT is lost.
        result = self.sql.execute(statement, rows, execution_options={"preserve_rowcount": True})
        return cast("CursorResult[Any]", result).rowcount

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what is written within, events included, if it raises; the transaction continues."""
        events, deferred, tick_requested = len(self._events), len(self._deferred), self._tick_requested
        try:
            with self.connection.begin_nested():
                yield
        except BaseException:
            del self._events[events:], self._deferred[deferred:]
            self._loaded.clear()  # it may have read what is undone
            self._tick_requested = tick_requested
            raise

    def request_tick(self) -> None:
        """Request a tick of the control loop right after the commit."""
        self._tick_requested = True

    def finish(self) -> CommitInfo:
        """Write what was deferred, then number the events and insert them: the last statements of the transaction.

        The team's row stays locked from here to the commit, so the order of numbers is the order of commits, and a
        reader who has seen n has seen everything up to n.
        """
        by_statement: dict[UpdateBase, list[dict[str, Any]]] = defaultdict(list)
        for statement, values in self._deferred:
            by_statement[statement].append(values)
        for statement, rows in by_statement.items():
            self.connection.execute(statement, rows)
        by_team: dict[UUID, list[dict[str, Any]]] = defaultdict(list)
        for row in self._events:
            by_team[row["team"]].append(row)
        for team in sorted(by_team):
            self._assign_numbers(team, by_team[team])
        if self._events:
            self.connection.execute(_insert(tables.EventRow), self._events)
        jobs = {row["job"] for row in self._events if row["job"] and row["kind"] != BatchStored.kind}
        return CommitInfo(set(by_team), jobs, self._tick_requested)

    def _assign_numbers(self, team: UUID, rows: list[dict[str, Any]]) -> None:
        changes = sum(row["kind"] not in NOT_SCHEDULED_FROM for row in rows)
        (last,) = self.rows(_COUNT_EVENTS, team=team, events=len(rows), changes=changes)[0]
        for seq, row in enumerate(rows, start=last - len(rows) + 1):
            row["seq"] = seq


@cache
def _insert(row: type[tables.Base]) -> Insert:
    return insert(row.metadata.tables[row.__tablename__])


@cache
def _defaults(row: type[tables.Base]) -> Sequence[tuple[str, Callable[[Any], Any]]]:
    """The columns that have a default, and what makes it, of a context that it ignores."""
    found: list[tuple[str, Callable[[Any], Any]]] = []
    for column in row.metadata.tables[row.__tablename__].columns:
        match column.default:
            case ScalarElementColumnDefault(arg=value):
                found.append((column.key, partial(_constant, value)))
            case CallableColumnDefault(arg=make):
                found.append((column.key, make))
    return found


def _constant(value: Any, _: object) -> Any:
    return value


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

_CLOCK = select(clock())

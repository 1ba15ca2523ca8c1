# SPDX-License-Identifier: Apache-2.0
"""Engines: how connections to SQLite and to PostgreSQL are set up."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import sqlite3
import time
from typing import Any

from sqlalchemy import Engine, create_engine, event, exc
from sqlalchemy.engine import URL
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from shoestring_core.errors import Unavailable
from shoestring_core.json_floats import encode_float
from shoestring_core.store.database_errors import is_conflict
from shoestring_core.store.tables import storable

log = logging.getLogger(__name__)

PAGES_KEPT_KIB = 512
"""By each connection to SQLite. What it read before another connection wrote it has to read again anyway."""

SQLITE_BYTES = 4 * 2**20
"""What SQLite may take in a process, whatever number of connections there are: beyond it, each reuses its own pages."""

PING_AFTER_IDLE_S = 1.0
"""A pooled connection that nobody used for so long is tried before it is used again."""


def sqlite_engine(address: URL, busy_timeout_s: float, *, read_only: bool = False) -> Engine:
    """WAL, so that readers never wait for the writer. BEGIN IMMEDIATE, because a transaction that reads first and then
    writes fails at once if another wrote in between, however long it would wait."""
    if not address.database or address.database == ":memory:":
        raise Unavailable("an SQLite database needs a file", hint="Use sqlite:///FILE.")
    engine = create_engine(
        address,
        json_serializer=_serialize,
        json_deserializer=_deserialize,
        pool_size=20,
        max_overflow=20,
        pool_timeout=busy_timeout_s,
        pool_use_lifo=True,  # a connection that takes turns keeps pages of its own
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN is deferred and skips DDL
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout_s * 1000)}")
        cursor.execute(f"PRAGMA cache_size = -{PAGES_KEPT_KIB}")
        cursor.execute(f"PRAGMA soft_heap_limit = {SQLITE_BYTES}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute(f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")
        cursor.close()

    def begin(connection: PoolProxiedConnection) -> None:
        if read_only:
            connection.cursor().execute("BEGIN DEFERRED")
        else:
            _begin_immediate(connection, busy_timeout_s)

    # not a listener of "begin": for an engine that has one, SQLAlchemy looks for listeners at each statement too
    engine.dialect.do_begin = begin  # type: ignore[assignment]
    return engine


def _begin_immediate(connection: PoolProxiedConnection, timeout_s: float) -> None:
    """Take the write lock, looking for it every few ms. SQLite's own handler looks every 100 ms in the end, and so
    waits for seconds beside another process that writes without pause."""
    give_up_at, cursor = time.monotonic() + timeout_s, connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                cursor.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not is_conflict(error) or time.monotonic() > give_up_at:
                    raise
                time.sleep(random.uniform(0.0005, 0.003))
            else:
                return
    finally:
        cursor.execute(f"PRAGMA busy_timeout = {int(timeout_s * 1000)}")


def postgresql_engine(address: URL, busy_timeout_s: float) -> Engine:
    """READ COMMITTED: guarded UPDATEs see the newest row, and conflicts wait instead of failing."""
    timeouts_ms = {
        "lock_timeout": int(busy_timeout_s * 1000),
        "statement_timeout": 30_000,
        "idle_in_transaction_session_timeout": 60_000,
    }
    engine = create_engine(
        address.set(drivername="postgresql+psycopg"),
        isolation_level="READ COMMITTED",
        json_serializer=_serialize,
        pool_size=10,
        max_overflow=20,
        pool_timeout=busy_timeout_s,
        pool_use_lifo=True,  # a connection that takes turns keeps its own prepared statements
        pool_recycle=1800,
        connect_args={
            "connect_timeout": 5,
            "application_name": "shoestring",
            "options": " ".join(f"-c {name}={value}" for name, value in timeouts_ms.items()),
        },
    )

    @event.listens_for(engine, "checkin")
    def returned(_: Any, record: ConnectionPoolEntry) -> None:
        record.info["returned_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ping_if_idle(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
        """`pool_pre_ping` would ask before each transaction, which is a third of what a short one costs."""
        if time.monotonic() < record.info.get("returned_at", float("inf")) + PING_AFTER_IDLE_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except Exception as error:
            raise exc.InvalidatePoolError from error  # replaces the idle connections, of a server that was restarted

    return engine


def _deserialize(text: str) -> Any:
    """SQLite keeps any text in a JSON column: one that is damaged is as good as empty, and costs no other row."""
    try:
        return json.loads(text)
    except ValueError as damaged:
        log.error("a stored JSON value can't be read (%s): %.80r", damaged, text)
        return {}


def _serialize(value: Any) -> str:
    with contextlib.suppress(ValueError):  # NaN or infinite
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)  # SQLite finds no key that is written as \u00e9
        if "\\u0000" not in text and _is_utf8(text):  # no NUL and no surrogate, as in most values
            return text
    return json.dumps(_storable(value), allow_nan=False, ensure_ascii=False)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _storable(value: Any) -> Any:
    if isinstance(value, float):
        return encode_float(value)
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list | tuple) else value

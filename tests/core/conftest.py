# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoestring_core.store import migrations
from shoestring_core.store.db import Read, Store, open_store
from shoestring_core.store.tables import Base
from sqlalchemy import text

from tests import write_order
from tests.core.world import Clock, Fleet, World
from tests.servers import Postgres


@pytest.fixture(scope="session")
def migrated(database_kind: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> str:
    """The URL of a migrated database: an SQLite file to copy, or a PostgreSQL database to empty after each test."""
    if database_kind == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('migrated') / 'shoestring.db'}"
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.url(postgres.create())
    store = open_store(url)
    store.migrate()
    store.close()
    return url


@pytest.fixture
def store(database_kind: str, migrated: str, tmp_path: Path) -> Iterator[Store]:
    """An empty store with today's schema, on each database; every transaction in it must keep the order of writes."""
    if database_kind == "sqlite":
        store = open_store(f"sqlite:///{shutil.copy(migrated.removeprefix('sqlite:///'), tmp_path)}")
    else:
        store = open_store(migrated)
    out_of_order = write_order.watch(store)
    yield store
    assert out_of_order() == []
    if database_kind == "postgresql":
        _empty(store)
    store.close()


@pytest.fixture
def postgres_store(postgres: Postgres) -> Iterator[Store]:
    """For what only PostgreSQL does."""
    name = postgres.create()
    store = open_store(postgres.url(name))
    store.migrate()
    yield store
    store.close()
    postgres.drop(name)


@pytest.fixture
def world(store: Store) -> World:
    """A team of one, without any limit."""
    return World(store)


@pytest.fixture
def fleet(store: Store, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """As `world`, at a time that only the test moves."""
    clock = Clock()
    monkeypatch.setattr(Read, "now", property(lambda _: clock.now))
    return Fleet(store, clock=clock)


def _empty(store: Store) -> None:
    assert store.revision() == migrations.head()
    with store.writer.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # no keys, and transfers may go
        for table in Base.metadata.tables.values():
            if table.name != "scheduler":
                connection.execute(table.delete())
        connection.execute(text("UPDATE scheduler SET epoch = 0"))

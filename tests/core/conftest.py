# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.transactions import Read

from tests import write_order
from tests.core.world import Clock, Fleet, World
from tests.servers import Postgres
from tests.shared_database import SharedDatabase


@pytest.fixture
def store(migrated: SharedDatabase) -> Iterator[Store]:
    """An empty store with today's schema, on each database; every transaction in it must keep the order of writes."""
    store = migrated.store()
    with write_order.watch(store) as out_of_order:
        yield store
        assert out_of_order() == []


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

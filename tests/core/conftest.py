# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest
from shoestring_core.store.engine import Store, open_store

from tests.core.world import World
from tests.servers import Postgres


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """An empty store with today's schema, on each database."""
    store = open_store(database_url)
    store.migrate()
    yield store
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

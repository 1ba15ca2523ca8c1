# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shoestring_core.store.engine import open_store

from tests.api.deployment import Deployment


@pytest.fixture
def here(database_url: str, tmp_path: Path) -> Iterator[Deployment]:
    """A running service with one team, its admin and a member, on each database."""
    store = open_store(database_url)
    store.migrate()
    store.close()
    with Deployment(database_url, tmp_path) as deployment:
        yield deployment

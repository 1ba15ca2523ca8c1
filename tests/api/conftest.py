# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.deployment import Deployment
from tests.shared_database import SharedDatabase


@pytest.fixture
def deployment(migrated: SharedDatabase, tmp_path: Path) -> Iterator[Deployment]:
    """A running service with one team, its admin and a member, on each database."""
    with Deployment(migrated.url, tmp_path, store=migrated.store()) as deployment:
        yield deployment

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.deployment import Deployment


@pytest.fixture
def deployment(migrated_url: str, tmp_path: Path) -> Iterator[Deployment]:
    """A running service with one team, its admin and a member, on each database."""
    with Deployment(migrated_url, tmp_path) as deployment:
        yield deployment

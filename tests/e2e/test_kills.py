# SPDX-License-Identifier: Apache-2.0
"""A slice of `tests/soak/kills.py`, which `make soak` runs in full: processes killed at moments drawn from seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import kills


@pytest.mark.timeout(420)
@pytest.mark.parametrize(
    ("case", "seed"),
    [("worker-postgresql", 14), ("up-sqlite", 10)],
)
def test_a_job_survives_the_death_of_any_process_at_any_moment(case: str, seed: int, tmp_path: Path) -> None:
    kills.prove(case, seed, tmp_path)

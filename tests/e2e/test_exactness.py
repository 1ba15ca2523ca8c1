# SPDX-License-Identifier: Apache-2.0
"""A slice of `tests/soak/exactness.py`, whose every topology and five interruptions `make soak` runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import exactness


@pytest.mark.timeout(600)
def test_an_interrupted_job_leaves_the_same_bits_as_an_uninterrupted_one(tmp_path: Path, seed: int) -> None:
    exactness.prove("two-machines", seed % 1_000, tmp_path, interruptions=2, epochs=14)

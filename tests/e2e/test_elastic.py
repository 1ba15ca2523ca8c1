# SPDX-License-Identifier: Apache-2.0
"""A slice of `tests/soak/elastic.py`, where a gang of four trains to the end of the job and its state is compared."""

from __future__ import annotations

from pathlib import Path

from tests.soak import elastic


def test_a_gang_that_loses_a_machine_trains_on_and_grows_back(tmp_path: Path, seed: int) -> None:
    _, summary, _ = elastic.live_through(
        "killed", seed % 1_000, tmp_path, 10_000, nodes=3, batch_size=128, step_s=0.2, to_the_end=False
    )
    print(summary)

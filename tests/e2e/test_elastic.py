# SPDX-License-Identifier: Apache-2.0
"""A slice of `tests/soak/elastic.py` with two machines; there four train to the end, and their state is compared."""

from __future__ import annotations

from pathlib import Path

from tests.soak import elastic


def test_a_gang_that_loses_a_machine_trains_on_and_grows_back(tmp_path: Path, seed: int) -> None:
    _, summary, _ = elastic.live_through(
        "killed",
        seed % 1_000,
        tmp_path,
        10_000,
        nodes=2,
        batch_size=128,
        step_s=0.2,
        look_every_s=0.5,
        to_the_end=False,
    )
    print(summary)

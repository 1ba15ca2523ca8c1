# SPDX-License-Identifier: Apache-2.0
"""How long before the end of its money a machine begins to save its work, on a clock of the test."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shoestring_trainer.agent import funding
from shoestring_trainer.agent.agent import Agent
from shoestring_trainer.agent.funding import FundingLease

NOW = 1_000.0
EC2_LEASE_S, LOCAL_LEASE_S = 900.0, 120.0


def margin(monkeypatch: pytest.MonkeyPatch, folder: Path, lease_s: float, save_s: float) -> float:
    """How many seconds before the lease ends it counts as ending."""
    lease = FundingLease(folder / "funding", SimpleNamespace(set_deadline=lambda _: None))  # type: ignore[arg-type]
    lease.extend(NOW, lease_s)
    for left in range(int(lease_s), 0, -1):
        monkeypatch.setattr(funding, "boottime", lambda left=left: NOW + lease_s - left)
        if lease.is_ending(save_s):
            return left
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    ("lease_s", "save_s", "expected"),
    [
        (EC2_LEASE_S, 0, 60),  # nothing is measured
        (EC2_LEASE_S, 5, 60),
        (EC2_LEASE_S, 130, 140),
        (EC2_LEASE_S, 1e6, 300),
        (LOCAL_LEASE_S, 0, 30),
        (LOCAL_LEASE_S, 25, 35),
        (LOCAL_LEASE_S, 1e6, 40),
    ],
)
def test_work_is_saved_as_early_as_its_last_checkpoint_took_within_a_third_of_the_lease(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lease_s: float, save_s: float, expected: float
):
    """Which the service has extended long before: when half of it was left."""
    assert margin(monkeypatch, tmp_path, lease_s, save_s) == expected
    assert expected < lease_s / 2


def test_the_agent_counts_what_its_last_upload_measured():
    asked: list[float] = []
    begun: list[str] = []

    def is_ending(save_s: float) -> bool:
        asked.append(save_s)
        return True

    agent: Any = SimpleNamespace(
        funding=SimpleNamespace(is_ending=is_ending), shutdown=SimpleNamespace(begin=begun.append),
        spool=SimpleNamespace(add_event=lambda *_: None),
        runner=SimpleNamespace(uploader=SimpleNamespace(save_s=130.0)),
    )  # fmt: skip
    asyncio.run(Agent.watch_funding(agent))
    assert (asked, len(begun)) == ([130.0], 1)

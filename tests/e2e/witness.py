# SPDX-License-Identifier: Apache-2.0
"""Judging a service from outside: by the machine host's journals and the process table, never by its own rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

from tests.e2e.service import journals, machine_processes

US_PER_HOUR = 3_600_000_000


@dataclass(frozen=True)
class Life:
    """One machine as its journal tells it: µs UTC; `ended` None while it lives."""

    job: str
    attempt: int
    slot: int
    token: str
    launched: int
    ended: int | None
    cause: str | None
    price: Decimal
    notice: bool

    @property
    def bill_micro(self) -> int:
        """Micro-dollars: the seconds used at the journaled price, rounded once."""
        assert self.ended is not None
        exact = self.price * 1_000_000 * (self.ended - self.launched) / US_PER_HOUR
        return int(exact.to_integral_value(ROUND_HALF_EVEN))


def lives(data: Path) -> list[Life]:
    return [_life(entries) for entries in journals(data) if entries]


def require_one_machine_a_slot(data: Path) -> None:
    """No two machines of one job and slot were ever alive at once."""
    by_slot: dict[tuple[str, int], list[Life]] = {}
    for life in lives(data):
        by_slot.setdefault((life.job, life.slot), []).append(life)
    for slot, mine in by_slot.items():
        mine.sort(key=lambda life: life.launched)
        for before, after in itertools.pairwise(mine):
            overlap = before.ended is None or before.ended > after.launched
            assert not overlap, f"two machines in {slot}: {before}, {after}"


def require_none_alive(data: Path) -> None:
    alive = [life for life in lives(data) if life.ended is None]
    assert not alive, f"still alive by their journals: {alive}"
    assert not machine_processes(data), "processes of machines are left"


def spent_usd(data: Path, job: str) -> Decimal:
    """What the job's machines cost, by an independent bill from the journals."""
    return Decimal(sum(life.bill_micro for life in lives(data) if life.job == job)) / 1_000_000


def _life(entries: list[dict[str, Any]]) -> Life:
    launch = next(entry for entry in entries if entry["event"] == "launch")
    end = next((entry for entry in entries if entry["event"] == "end"), None)
    tags = launch["tags"]
    return Life(
        job=tags["job"], attempt=int(tags["attempt"]), slot=int(tags["slot"]), token=launch["token"],
        launched=launch["at"], ended=end and end["at"], cause=end and end["cause"], price=Decimal(launch["price"]),
        notice=any(entry["event"] == "notice" for entry in entries),
    )  # fmt: skip

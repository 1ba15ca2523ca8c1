# SPDX-License-Identifier: Apache-2.0
"""Holds: how much money is set aside for a machine, until when, and when that is extended.

A hold covers a machine until `funded_until` plus the time it may take to end, at the price that can't be exceeded (the
on-demand price), so that nothing a machine does can cost more than was set aside.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoestring_core import money
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.states import DesiredState, EndReason


@dataclass(frozen=True)
class Funding:
    """Money of one machine. Micro-dollars and µs UTC; `left` is what its open hold still has."""

    rate_cap: str
    left: int
    funded_until: int


@dataclass(frozen=True)
class Extension:
    """Add `more` micro-dollars to the hold (0: what is left covers it) and fund the machine until `funded_until`."""

    more: int
    funded_until: int


def first_hold(rate_cap: str, timeouts: Timeouts) -> int:
    """Micro-dollars to set aside for one machine before it is launched."""
    return money.cost_ceiling(rate_cap, timeouts.funding_lease + timeouts.drain)


def extension(funding: Funding, now: int, timeouts: Timeouts) -> Extension | None:
    """The extension that is due, once less than half of the funded time is left."""
    if funding.funded_until - now >= timeouts.funding_lease // 2:
        return None
    until = now + timeouts.funding_lease
    need = money.cost_ceiling(funding.rate_cap, until + timeouts.drain - now)
    return Extension(max(0, need - funding.left), until)


def when_refused(on_budget: str) -> DesiredState:
    """What becomes of a job whose machines can't be funded further: it checkpoints, then this (pause | stop)."""
    return DesiredState.PAUSE if on_budget == "pause" else DesiredState.STOP


def after_stopping(desired: DesiredState, stop_reason: str) -> EndReason | None:
    """Why a job whose machines are all terminated ends; None if it doesn't end but waits (pause) or queues (run)."""
    if desired is not DesiredState.STOP:
        return None
    reasons = {"budget": EndReason.BUDGET, "time_limit": EndReason.TIME_LIMIT, "goal": EndReason.GOAL_REACHED}
    return reasons.get(stop_reason, EndReason.USER_STOP)

# SPDX-License-Identifier: Apache-2.0
"""The bill of a machine: a pure function of the provider's evidence, so that anybody can work it out again."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoestring_core import money
from shoestring_core.wording import Reason
from shoestring_core.wording.budget import Usage

CLOCK_STEP = 1_000_000
"""µs: a computer's clock that differs from its machine's by less was not set, but corrected as all clocks are."""


@dataclass(frozen=True)
class BillingRules:
    """How a provider bills a machine: the time from launch to end, and at least `minimum` (µs), whatever ended it."""

    minimum: int = 0


@dataclass(frozen=True)
class Evidence:
    """What the provider reports about a machine: µs UTC by its clock, dollars per hour as a decimal.

    ended_at     None while it runs
    end_cause    requested | preempted | exited | crashed
    clock_shift  how far our clock was set forward since the launch (negative: back), which the provider's wasn't (µs)
    """

    provider: str
    type: str
    market: str
    price: str
    launched_at: int | None
    ended_at: int | None
    end_cause: str | None = None
    clock_shift: int = 0
    rules: BillingRules = field(default_factory=BillingRules)


@dataclass(frozen=True)
class Line:
    """One line of a bill. `amount` is the whole line so far in micro-dollars, not what is new since the last one."""

    line: str
    amount: int
    reason: Reason


def bill(evidence: Evidence, now: int) -> list[Line]:
    """What the machine has cost by `now` (µs UTC), rounded once per line. One that never launched costs nothing."""
    used = used_us(evidence, now)
    if used == 0:
        return []
    shift = evidence.clock_shift if abs(evidence.clock_shift) >= CLOCK_STEP else 0
    usage = Usage(used, evidence.type, evidence.market, evidence.price, clock_shift_us=shift)
    return [Line("machine", money.cost(evidence.price, used), usage)]


def used_us(evidence: Evidence, now: int) -> int:
    """Microseconds that are billed."""
    if evidence.launched_at is None:
        return 0
    end = now - evidence.clock_shift if evidence.ended_at is None else evidence.ended_at
    return max(end - evidence.launched_at, evidence.rules.minimum)

# SPDX-License-Identifier: Apache-2.0
"""The bill of a machine: a pure function of the provider's evidence, so that anybody can work it out again.

Each rule is a function, named for what it bills. Which of them hold for a machine is in its `BillingRules`, stored with
it at launch; without any, the time from launch to end is billed at the price of the launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal

from shoestring_core import money
from shoestring_core.wording import Reason
from shoestring_core.wording.bills import ExtraUsage, FreeInterruption, NeverRan, Usage

CLOCK_STEP = 1_000_000
"""µs: a computer's clock that differs from its machine's by less was not set, but corrected as all clocks are."""

INTERRUPTION_GRACE = 60_000_000
"""µs: how much later than its notice says a provider may interrupt a machine."""

MONTH = 30 * 24 * 3_600_000_000
"""µs: what is priced by the month is priced by 30 days."""

PriceChange = tuple[int, str]
"""From when on (µs UTC) a price in dollars per hour holds."""


@dataclass(frozen=True)
class Extra:
    """What is billed besides a machine for as long as it exists: an estimate, by the provider's list price.

    line     of the bill: disk | address
    what     as a user reads it, such as "100 GiB of gp3"
    monthly  dollars for 30 days, as a decimal
    """

    line: str
    what: str
    monthly: str


@dataclass(frozen=True)
class BillingRules:
    """How a provider bills a machine. The defaults: the time from launch to end, whatever ended it.

    minimum                     the least time that is billed (µs)
    increment                   the time is rounded up to a multiple of this (µs)
    pending_is_free             nothing is billed before the machine runs
    free_if_interrupted_within  a spot machine that the provider interrupts so soon after its launch is free (µs)
    spot_price_moves            a spot machine is billed at the price that holds in each increment
    extras                      what is billed besides
    """

    minimum: int = 0
    increment: int = 1
    pending_is_free: bool = False
    free_if_interrupted_within: int = 0
    spot_price_moves: bool = False
    extras: tuple[Extra, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What the provider reports about a machine: µs UTC by its clock, dollars per hour as a decimal.

    price          at launch
    ended_at       when it began to end; None while it runs
    end_cause      requested | preempted | exited | crashed; or a RefusalKind: it never ran
    clock_shift    how far our clock was set forward since the launch (negative: back), which the provider's wasn't (µs)
    pending_until  when the provider last said that it doesn't run yet; None: it never said so
    price_changes  of its spot price, by time, from the one before the launch
    """

    provider: str
    type: str
    market: str
    price: str
    launched_at: int | None
    ended_at: int | None
    end_cause: str | None = None
    clock_shift: int = 0
    pending_until: int | None = None
    price_changes: tuple[PriceChange, ...] = ()
    rules: BillingRules = field(default_factory=BillingRules)


@dataclass(frozen=True)
class Line:
    """One line of a bill. `amount` is the whole line so far in micro-dollars, not what is new since the last one.

    estimate  it follows from list prices, not from what the provider reports
    """

    line: str
    amount: int
    reason: Reason
    estimate: bool = False


def bill(evidence: Evidence, now: int) -> list[Line]:
    """What the machine has cost by `now` (µs UTC), rounded once per line. One that never launched costs nothing."""
    if evidence.launched_at is None:
        return []
    if evidence.rules.pending_is_free and evidence.end_cause not in _RAN:
        return [Line("machine", 0, NeverRan())]
    end = now - evidence.clock_shift if evidence.ended_at is None else evidence.ended_at
    begin = _billed_from(evidence, evidence.launched_at)
    used = _billed_time(evidence.rules, begin, end)
    extras = [_extra(extra, evidence.rules, evidence.launched_at, end) for extra in evidence.rules.extras]
    if _is_free_interruption(evidence, evidence.launched_at):
        return [Line("machine", 0, FreeInterruption(used, evidence.type)), *extras]
    if used == 0:
        return extras
    shift = evidence.clock_shift if abs(evidence.clock_shift) >= CLOCK_STEP else 0
    priced = list(_priced_spans(evidence, begin, used))
    prices = sorted({price for price, _ in priced}, key=Decimal)
    usage = Usage(
        used, evidence.type, evidence.market, prices[0], shift, highest=prices[-1] if len(prices) > 1 else None
    )
    return [Line("machine", money.total_cost(priced), usage), *extras]


def free_if_left_until(evidence: Evidence, notice_at: int) -> int | None:
    """Until when (µs UTC) a machine with a notice is left to its provider: interrupted it costs nothing, and ended by
    us all that it ran. None: that makes no difference.

    notice_at  when the provider will interrupt it
    """
    if evidence.launched_at is None or evidence.market != "spot":
        return None
    free = notice_at - evidence.launched_at < evidence.rules.free_if_interrupted_within
    return notice_at + INTERRUPTION_GRACE if free else None


def hourly(extras: Iterable[Extra], besides: str = "0") -> str:
    """Dollars per hour of extras, rounded up to a micro-dollar, and of what costs `besides`."""
    monthly = sum((Decimal(extra.monthly) for extra in extras), Decimal(0))
    if not monthly:
        return besides
    each_hour = Decimal(besides) + monthly * money.HOUR / MONTH
    return str(each_hour.quantize(Decimal("0.000001"), ROUND_CEILING))


# Rules

_RAN = frozenset({None, "requested", "preempted", "exited", "crashed"})
"""Causes of the end of machines that ran. The others ended while they were pending: no capacity after all, a quota."""


def _billed_from(evidence: Evidence, launched_at: int) -> int:
    """`pending` is not billed: docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-lifecycle.html.

    `shutting-down` and `stopping` aren't either, by the same page: `ended_at` is when they began.
    """
    if not evidence.rules.pending_is_free or evidence.pending_until is None:
        return launched_at
    return max(launched_at, evidence.pending_until)


def _billed_time(rules: BillingRules, begin: int, end: int) -> int:
    """Per second, with a minimum of 60 s: aws.amazon.com/ec2/pricing/on-demand, "Per-second billing"."""
    return _round_up(max(end - begin, rules.minimum), rules.increment)


def _is_free_interruption(evidence: Evidence, launched_at: int) -> bool:
    """A spot machine that EC2 interrupts in its first hour is free; one that ended otherwise isn't.

    docs.aws.amazon.com/AWSEC2/latest/UserGuide/billing-for-interrupted-spot-instances.html
    """
    if evidence.ended_at is None or (evidence.market, evidence.end_cause) != ("spot", "preempted"):
        return False
    return evidence.ended_at - launched_at < evidence.rules.free_if_interrupted_within


def _priced_spans(evidence: Evidence, begin: int, used: int) -> Iterator[tuple[str, int]]:
    """The prices of the billed time, and for how long each holds (µs): a second costs what holds when it begins.

    docs.aws.amazon.com/whitepapers/latest/cost-optimization-leveraging-ec2-spot-instances/how-spot-instances-work.html
    """
    price, done = evidence.price, 0
    if evidence.rules.spot_price_moves and evidence.market == "spot":
        for changed_at, changed_to in evidence.price_changes:
            until = min(_round_up(max(0, changed_at - begin), evidence.rules.increment), used)
            if until > done:
                yield price, until - done
            price, done = changed_to, max(done, until)
    if used > done:
        yield price, used - done


def _extra(extra: Extra, rules: BillingRules, launched_at: int, end: int) -> Line:
    """From launch to end, per second with a minimum of 60 s, pending and free hours too: aws.amazon.com/ebs/pricing."""
    used = _billed_time(rules, launched_at, end)
    amount = money.total_cost([(extra.monthly, used)], per=MONTH)
    return Line(extra.line, amount, ExtraUsage(extra.what, used, extra.monthly), estimate=True)


def _round_up(time: int, increment: int) -> int:
    return -(-time // increment) * increment

# SPDX-License-Identifier: Apache-2.0
"""Holds: how much money is reserved for a machine, until when, and when the reservation is extended.

A hold covers a machine until `funded_until` plus the time it may take to terminate, at the highest possible price (the
on-demand price), so that a machine can never cost more than its hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from shoestring_core import money
from shoestring_core.decide.billing import CLOCK_STEP
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.states import DesiredState, EndReason, StopReason


@dataclass(frozen=True)
class MachineFunding:
    """The hold of one machine. Micro-dollars and µs UTC; `remaining` is what the hold has not spent yet.

    rate_cap  the highest price, in dollars per hour
    """

    rate_cap: str
    remaining: int
    funded_until: int


@dataclass(frozen=True)
class Storage:
    """How long checkpoints can be stored.

    until    what a machine uploads later than this (µs UTC) can't be stored; None: no end is known
    problem  why nothing can be stored from now on; "": it can
    """

    until: int | None = None
    problem: str = ""


STORABLE = Storage()
"""Without an end."""


@dataclass(frozen=True)
class HoldExtension:
    """Add `amount` micro-dollars to the hold (0: the rest covers it) and fund the machine until `funded_until`."""

    amount: int
    funded_until: int


def rate_of(offer: Offer, nodes: int) -> int:
    """Micro-dollars an hour that so many of its machines cost now."""
    return nodes * _hourly_rate(offer.price)


@lru_cache(maxsize=4096)
def _hourly_rate(price: str) -> int:
    """Micro-dollars."""
    return money.cost(price, money.HOUR)


def hold_for(offer: Offer, requirements: Requirements, timeouts: Mapping[str, Timeouts]) -> int:
    """Micro-dollars that are held to start the job's machines. timeouts: by provider"""
    return requirements.nodes * machine_hold(offer, requirements, timeouts[offer.provider])


def machine_hold(offer: Offer, requirements: Requirements, timeouts: Timeouts) -> int:
    """Micro-dollars that are held to start one of the job's machines."""
    return initial_hold(offer.rate_cap, timeouts, offer.billing.minimum, requirements.reserved_time)


def initial_hold(rate_cap: str, timeouts: Timeouts, billed_at_least: int = 0, reserved_time: int = 0) -> int:
    """Micro-dollars to reserve for one machine before it is launched.

    billed_at_least  the time that is billed for every machine (µs)
    reserved_time    the longest that the job may train (µs), if all of it is reserved, with the time to start and end
    """
    lived = timeouts.funding_lease
    if reserved_time:
        lived = max(lived, timeouts.boot + timeouts.launch_window + timeouts.forming + reserved_time)
    return money.cost_ceiling(rate_cap, max(lived + timeouts.drain, billed_at_least))


def funded_until(now: int, timeouts: Timeouts, storable_until: int | None) -> int:
    """Until when a machine is funded by a new lease: it has ended before what it uploads can't be stored any more."""
    until = now + timeouts.funding_lease
    return until if storable_until is None else min(until, storable_until - timeouts.drain)


def due_extension(
    funding: MachineFunding, now: int, timeouts: Timeouts, storable_until: int | None = None
) -> HoldExtension | None:
    """The extension of a hold, once less than half of the funding lease is left; None before that.

    storable_until  as `Storage.until`

    A lease that ends later than a new one would was set before the clock was set back: it is set again.
    """
    if timeouts.funding_lease // 2 <= funding.funded_until - now <= timeouts.funding_lease + CLOCK_STEP:
        return None
    until = funded_until(now, timeouts, storable_until)
    if storable_until is not None and until <= funding.funded_until:
        return None
    need = money.cost_ceiling(funding.rate_cap, until + timeouts.drain - now)
    return HoldExtension(max(0, need - funding.remaining), until)


def is_cut_short(funding: MachineFunding, now: int, timeouts: Timeouts, storable_until: int | None) -> bool:
    """Whether an extension is due that the end of what can be stored forbids. Credentials that are renewed are so long
    before that."""
    due = funding.funded_until - now < timeouts.funding_lease // 2
    return due and funded_until(now, timeouts, storable_until) <= funding.funded_until


def when_budget_exhausted(on_budget: str) -> DesiredState:
    """What a job does after its last checkpoint when its machines can't be funded further: pause or stop.

    One that is to finish gets here only when its reserve is spent: with each restart it takes longer than that covers.
    """
    return DesiredState.STOP if on_budget == "stop" else DesiredState.PAUSE


def end_reason_after_stopping(desired: DesiredState, stop_reason: str) -> EndReason | None:
    """Why a job ends once its machines have terminated; None if it pauses or is queued instead."""
    return StopReason(stop_reason).end_reason if desired is DesiredState.STOP else None

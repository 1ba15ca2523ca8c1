# SPDX-License-Identifier: Apache-2.0
"""Deadlines: how a job is to keep one, and the case that is decided about in each interval.

A job with limits.deadline trains on spot machines as long as on-demand ones could still finish it in time. What these
would cost is committed at its submission: its machines are paid from that, so that nobody else can spend it.
`spot.live` decides, in each interval, where it trains; docs/spot-policy.md describes how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from shoestring_core import money
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import S, Timeouts

INTERVAL = 60 * S
"""Between two decisions about a job. They are made at whole intervals before its deadline."""

Market = Literal["wait", "spot", "on_demand"]
"""Where a job is to train: nowhere yet, or on machines of this market."""

Because = Literal["policy", "deadline", "money", "late"]
"""policy: that is expected to cost least; deadline: anything else could be late; money: more spot machines that are
lost could use up what on-demand ones need; late: nothing is in time any more."""


@dataclass(frozen=True)
class DeadlinePlan:
    """How a job is to keep its deadline, made when it is submitted. Times in µs UTC, durations in µs, micro-dollars.

    begun_at    when it was submitted
    provider    of its machines, which are of this type on either market
    work        that it trains at most, of nine runs in ten
    changeover  from the order to leave a machine, or the launch of the first, until training continues; its first part,
                until the machine has terminated, is `teardown`
    worst_case  what it costs on on-demand machines from now on, with one changeover more
    basis       of `work`: runs on such machines, other runs, or limits.time; and how many runs
    """

    begun_at: int
    deadline: int
    provider: str
    type: str
    nodes: int
    work: int
    changeover: int
    teardown: int
    worst_case: int
    basis: Literal["measured", "scaled", "time_limit"]
    runs: int = 0

    def as_json(self) -> dict[str, Any]:
        tree: dict[str, Any] = _PLAN.dump_python(self, mode="json")
        return tree

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> DeadlinePlan:
        return _PLAN.validate_python(tree)


@dataclass(frozen=True)
class ZoneSeen:
    """A zone with spot machines of the type: whether there are any in this interval, hours for which there were, and
    how often there were none the next time."""

    name: str
    available: bool
    up_hours: float = 0.0
    losses: int = 0


@dataclass(frozen=True)
class Seen:
    """What was seen of all zones since the job was submitted: hours with any, with several, with none available, and
    how often there were some again. Zones by name."""

    zones: tuple[ZoneSeen, ...] = ()
    any_up_hours: float = 0.0
    several_up_hours: float = 0.0
    outage_hours: float = 0.0
    recoveries: int = 0


@dataclass(frozen=True)
class DeadlineCase:
    """All that the decision about a job depends on, in one interval. Stored, so that it can be recomputed.

    market, zone     of its machines now; "wait": it has none
    work_left        what is left of plan.work, by its progress
    changeover       as the plan's, or as measured since; of it `changeover_left` until training continues
    seen             this interval included; `seen_before`: what is certain, without it
    price_ratio      on-demand / spot
    on_demand_rate   micro-dollars an hour of all its machines, at most; `spot_rate`: now
    money_left       what it may still spend: held, committed, and free in its budgets; None: there is no limit
    """

    plan: DeadlinePlan
    now: int
    market: Market
    zone: str
    work_left: int
    changeover: int
    changeover_left: int
    seen: Seen
    seen_before: Seen
    price_ratio: float
    on_demand_rate: int
    spot_rate: int
    money_left: int | None
    interval: int

    @property
    def time_left(self) -> int:
        """Whole intervals before the deadline."""
        return max(0, self.plan.deadline - self.now) // self.interval * self.interval

    @property
    def reserve(self) -> int:
        """As `spot.deadline_job.DeadlineJob.reserve`."""
        return self.changeover + max(self.changeover, self.interval)

    @property
    def on_demand_at(self) -> int:
        """When it changes to on-demand at the latest, if no more is trained until then (µs UTC)."""
        return max(self.now, self.plan.deadline - self.work_left - self.reserve)

    def as_json(self) -> dict[str, Any]:
        tree: dict[str, Any] = _CASE.dump_python(self, mode="json")
        return tree

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> DeadlineCase:
        return _CASE.validate_python(tree)


@dataclass(frozen=True)
class DeadlineDecision:
    """Where the job is to train in this interval; `zone`: of a spot machine that is to be started."""

    market: Market
    zone: str
    because: Because


def cost_on_demand(offer: Offer, nodes: int, work: int, changeover: int, timeouts: Timeouts) -> int:
    """The most that on-demand machines cost from now on: what they train, start twice, and are funded ahead."""
    rented = work + changeover + max(changeover, INTERVAL) + timeouts.funding_lease + timeouts.drain
    return nodes * money.cost_ceiling(offer.rate_cap, max(rented, offer.billing.minimum))


def requirements_for(requirements: Requirements, plan: DeadlinePlan, market: Market, zone: str) -> Requirements:
    """Those of a job whose next machines are to be of this market; `zone`: as `ZoneSeen.name`."""
    placed = replace(requirements, provider=plan.provider, type=plan.type, spot="only" if market == "spot" else "never")
    if market == "spot" and zone:
        region, _, name = zone.partition("/")
        placed = replace(placed, regions=(region,), zones=(name,) if name else ())
    return placed


def rounded_up(changeover: int) -> int:
    """To 5 s, so that what is computed for one serves for many."""
    return -(-changeover // (5 * S)) * 5 * S


def zone_of(region: str, zone: str) -> str:
    """`ZoneSeen.name`."""
    return f"{region}/{zone}"


@dataclass(frozen=True)
class DeadlineTurn:
    """What was decided last about a queued job, of what case; None: nothing yet. `committed`: micro-dollars that only
    its machines can be paid from."""

    market: Market
    zone: str
    case: DeadlineCase | None
    committed: int


_PLAN = TypeAdapter(DeadlinePlan)
_CASE = TypeAdapter(DeadlineCase)

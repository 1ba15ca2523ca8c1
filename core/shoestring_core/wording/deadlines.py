# SPDX-License-Identifier: Apache-2.0
"""Deadlines: why one can't be promised, what is reserved for it, and where the job trains to keep it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoestring_core.durations import format_duration
from shoestring_core.states import WaitReason
from shoestring_core.wording.reason import NestedReason, Reason
from shoestring_core.wording.units import counted, dollars, moment, shortage
from shoestring_core.wording.waits import WaitDetail

# Refused


@dataclass(frozen=True)
class DeadlinePassed(Reason):
    code = "deadline_passed"
    deadline: int

    def text(self) -> str:
        return f"limits.deadline, {moment(self.deadline)}, has passed."

    def hint(self) -> str:
        return "Give a future time, or a duration such as 12h."


@dataclass(frozen=True)
class NoOnDemandMachines(Reason):
    """`why`: no on-demand machine suits it."""

    code = "no_on_demand_machines"
    why: NestedReason | None

    def text(self) -> str:
        why = f" {self.why.text()}" if self.why else ""
        return f"A deadline needs on-demand machines, and none meets the job's requirements.{why}"

    def hint(self) -> str:
        return "Relax the job's requirements, or leave limits.deadline out."


@dataclass(frozen=True)
class DurationUnknown(Reason):
    code = "duration_unknown"

    def text(self) -> str:
        return "No earlier run of your team says how long this job takes, so no deadline can be promised."

    def hint(self) -> str:
        return "Set limits.time, the longest that it may train; or run it once without limits.deadline."


@dataclass(frozen=True)
class DeadlineTooEarly(Reason):
    """`earliest`: when `nodes` of `type`, the fastest on-demand machines, would be done; `needed_us`: until then."""

    code = "deadline_too_early"
    deadline: int
    earliest: int
    needed_us: int
    type: str
    nodes: int

    def text(self) -> str:
        return (
            f"On-demand machines that start now may take {format_duration(self.needed_us / 1e6)} ({self.nodes} × "
            f"{self.type}), until {moment(self.earliest)}: limits.deadline, {moment(self.deadline)}, is too early."
        )

    def hint(self) -> str:
        return f"Set limits.deadline to {moment(self.earliest)} or later, or use more or faster machines."


@dataclass(frozen=True)
class DeadlineUnaffordable(Reason):
    """`need`: the worst case; `left`: of the budget that has least."""

    code = "deadline_unaffordable"
    account_title: str
    need: str
    left: str
    own_limit: bool

    def text(self) -> str:
        budget = "limits.cost is" if self.own_limit else f"{self.account_title} has"
        (need, has), left = shortage(self.need, self.left), "" if self.own_limit else " left"
        return f"To keep the deadline it could cost {need}, on-demand from now on, and {budget} {has}{left}."

    def hint(self) -> str:
        raised = "limits.cost" if self.own_limit else "the limit (`shoestring budget set`)"
        return f"Raise {raised}, use fewer or cheaper machines, or leave limits.deadline out."


# Promised


@dataclass(frozen=True)
class DeadlineKept(Reason):
    """Of a job that has not ended. Times in µs UTC.

    market        where it trains, or waits to
    waiting       it has no machines yet
    on_demand_at  when it changes to on-demand machines at the latest, if it trains no more until then
    because       as decide.deadlines.DeadlineDecision
    committed     dollars that are reserved for its machines to come
    """

    code = "deadline_kept"
    market: Literal["wait", "spot", "on_demand"]
    waiting: bool
    on_demand_at: int
    deadline: int
    because: Literal["policy", "deadline", "money", "late"]
    committed: str

    def text(self) -> str:
        by = f"to be done by {moment(self.deadline)}"
        reserved = f" {dollars(self.committed)} is reserved for that."
        if self.because == "late":
            return f"It may miss its deadline, {moment(self.deadline)}; it continues as fast as it can."
        if self.market == "on_demand":
            why = {"money": ", because its budget can't cover another lost spot machine"}.get(self.because, "")
            what = "To start on on-demand machines" if self.waiting else "On on-demand machines"
            return f"{what}, {by}{why}.{reserved}"
        spot = "To start on spot" if self.waiting else "On spot"
        what = "Waits for spot machines" if self.market == "wait" else spot
        latest = f"changes to on-demand at the latest at {moment(self.on_demand_at)}"
        return f"{what}; {latest}, {by}.{reserved}"


@dataclass(frozen=True)
class DeadlinePromised(Reason):
    """What a submission commits: `worst_case`, on-demand from now on. `left`: of the budget that has least after that;
    None: there is no limit. `work_us`: that it trains at most, by `runs` runs, or by limits.time if there are none."""

    code = "deadline_promised"
    deadline: int
    worst_case: str
    left: str | None
    account_title: str
    work_us: int
    runs: int

    def text(self) -> str:
        left = f" {self.account_title} has {dollars(self.left)} left." if self.left is not None else ""
        by = f"by {counted(self.runs, 'earlier run')}" if self.runs else "its limits.time"
        return (
            f"To be done by {moment(self.deadline)}. It trains {format_duration(self.work_us / 1e6)} at most, {by}. "
            f"{dollars(self.worst_case)} is reserved: the worst case, on-demand from now on.{left}"
        )


@dataclass(frozen=True)
class MarketChanged(Reason):
    """A running job continues elsewhere: on machines of a market, or it waits for spot."""

    code = "market_changed"
    to: Literal["wait", "spot", "on_demand"]
    because: Literal["policy", "deadline", "money", "late"]
    deadline: int

    def text(self) -> str:
        to = {
            "wait": "It leaves its machines",
            "spot": "It continues on spot machines",
            "on_demand": "It continues on on-demand machines",
        }
        why = {
            "policy": "which is expected to cost least",
            "deadline": "because it could be late otherwise",
            "money": "because its budget can't cover another lost spot machine",
            "late": "because it is late",
        }
        return f"{to[self.to]}, {why[self.because]}, to be done by {moment(self.deadline)}."


@dataclass(frozen=True)
class ForSpot(WaitDetail):
    """It waits for spot machines, as long as it can still be in time on-demand."""

    code = "for_spot"
    waits_for = WaitReason.CAPACITY
    on_demand_at: int
    deadline: int

    def text(self) -> str:
        return (
            f"It starts when spot machines are worth it, or on on-demand machines at {moment(self.on_demand_at)} at "
            f"the latest, to be done by {moment(self.deadline)}."
        )

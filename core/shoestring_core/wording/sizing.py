# SPDX-License-Identifier: Apache-2.0
"""The choice of machines: what a job runs on, and why not on faster machines."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import FiniteFloat

from shoestring_core.durations import format_duration
from shoestring_core.wording.reason import NestedReason, Reason
from shoestring_core.wording.units import counted, dollars, shortage


@dataclass(frozen=True)
class MachineEstimate:
    """What a number of machines of one type is expected to take, with its upper estimate, and to cost altogether."""

    nodes: int
    type: str
    basis: str
    run_s: FiniteFloat
    run_upper_s: FiniteFloat
    cost: str

    @property
    def name(self) -> str:
        return f"{self.nodes} × {self.type}"

    @property
    def would_take(self) -> str:
        basis = "" if self.basis == "measured" else f" ({self.basis})"
        return f"{self.name} would take about {format_duration(self.run_s)}{basis}"

    @property
    def expected(self) -> str:
        margin = 100 * (self.run_upper_s / self.run_s - 1) if self.run_s else 0
        basis = "" if self.basis == "measured" else f", {self.basis}"
        return (
            f"about {format_duration(self.run_s)} "
            f"(upper estimate {format_duration(self.run_upper_s)}, +{margin:.0f} %{basis}), about {dollars(self.cost)}"
        )


@dataclass(frozen=True)
class Sized(Reason):
    """The whole answer: what the job runs on, or why on nothing, and what prevents a faster run."""

    code = "sized"
    summary: NestedReason
    why_not_faster: NestedReason | None

    def text(self) -> str:
        return " ".join(part.text() for part in (self.summary, self.why_not_faster) if part is not None)

    def hint(self) -> str | None:
        return self.summary.hint()


# What the job runs on


@dataclass(frozen=True)
class MachinesChosen(Reason):
    """`sufficient_time_limit_s`: the limits.time that would be enough, where it is too short."""

    code = "machines_chosen"
    estimate: MachineEstimate
    time_limit_s: FiniteFloat | None
    sufficient_time_limit_s: int | None

    def text(self) -> str:
        expected = f"{self.estimate.name}: {self.estimate.expected}"
        if self.time_limit_s is None:
            return f"{expected}."
        if self.sufficient_time_limit_s is None:
            return f"{expected}; limits.time is {format_duration(self.time_limit_s)}."
        return (
            f"{expected}. That may exceed limits.time of {format_duration(self.time_limit_s)}, "
            f"at which the job is stopped; {format_duration(self.sufficient_time_limit_s)} would be enough."
        )


@dataclass(frozen=True)
class MachinesQuoted(Reason):
    """Of a quote whose first offer has a time and a cost, which are not said again.

    machines                 such as "2 × g5.xlarge"
    chosen                   for limits.time, not by the spec
    sufficient_time_limit_s  as in MachinesChosen
    """

    code = "machines_quoted"
    machines: str
    chosen: bool
    time_limit_s: FiniteFloat | None
    sufficient_time_limit_s: int | None

    def text(self) -> str:
        runs = f"It runs on {self.machines}"
        if self.time_limit_s is None:
            return f"{runs}."
        limit = f"limits.time of {format_duration(self.time_limit_s)}"
        if self.sufficient_time_limit_s is not None:
            enough = f"{format_duration(self.sufficient_time_limit_s)} would be enough"
            return f"{runs}. It may take longer than {limit}, at which it is stopped; {enough}."
        return f"{runs}, the cheapest to keep {limit}." if self.chosen else f"{runs}, with {limit}."


@dataclass(frozen=True)
class NotMeasured(Reason):
    """`per_hour`: dollars for all machines together, at today's price; None if nothing is offered."""

    code = "not_measured"
    nodes: int
    time_limit_s: FiniteFloat | None
    per_hour: str | None

    def text(self) -> str:
        runs_on = f"it runs on {counted(self.nodes, 'machine')}{_at(self.per_hour)}{_until(self.time_limit_s)}"
        return f"No similar run has been measured yet; {runs_on}."


@dataclass(frozen=True)
class CountNotMeasured(Reason):
    """`measured`: the counts that can be estimated, ascending. `per_hour` as in NotMeasured."""

    code = "count_not_measured"
    nodes: int
    measured: tuple[int, ...]
    time_limit_s: FiniteFloat | None
    per_hour: str | None

    def text(self) -> str:
        counts = ", ".join(map(str, self.measured))
        if len(self.measured) > 3:
            counts = f"{self.measured[0]} to {self.measured[-1]}"
        return (
            f"There is no measurement for {counted(self.nodes, 'machine')}, only for {counts}; "
            f"it runs as requested{_at(self.per_hour)}{_until(self.time_limit_s)}."
        )


@dataclass(frozen=True)
class TimeLimitTooShort(Reason):
    """Even the fastest machines that are available take longer."""

    code = "time_limit_too_short"
    fastest: MachineEstimate
    time_limit_s: FiniteFloat
    sufficient_time_limit_s: int

    def text(self) -> str:
        return (
            f"No machines finish it within limits.time of {format_duration(self.time_limit_s)}. "
            f"The fastest available is {self.fastest.name}: {self.fastest.expected}. "
            f"limits.time={format_duration(self.sufficient_time_limit_s)} would be enough."
        )

    def hint(self) -> str:
        return _SET_NODES


@dataclass(frozen=True)
class NoFeasibleMachines(Reason):
    """`nearest`: what prevents the machines that come nearest to the limit."""

    code = "no_feasible_machines"
    time_limit_s: FiniteFloat
    nearest: NestedReason

    def text(self) -> str:
        return (
            f"No available machines finish it within limits.time of {format_duration(self.time_limit_s)}: "
            f"{self.nearest.text()}"
        )

    def hint(self) -> str:
        return _SET_NODES


_SET_NODES = "Or set resources.nodes: the job then runs on those machines until limits.time ends it."


# Why not on faster machines


@dataclass(frozen=True)
class WhyNotFaster(Reason):
    code = "why_not_faster"
    obstacles: tuple[NestedReason, ...]

    def text(self) -> str:
        return f"Why not faster? {' '.join(obstacle.text() for obstacle in self.obstacles)}"


@dataclass(frozen=True)
class WillBeMeasured(Reason):
    code = "will_be_measured"

    def text(self) -> str:
        return "This run will be measured to improve the next estimate."


@dataclass(frozen=True)
class FasterCostsMore(Reason):
    """`extra`: by how much; None: it costs the same."""

    code = "faster_costs_more"
    estimate: MachineEstimate
    extra: str | None

    def text(self) -> str:
        price = f"cost {dollars(self.extra)} more" if self.extra else "cost the same"
        return f"{self.estimate.would_take} and {price}."


@dataclass(frozen=True)
class FasterOverBudget(Reason):
    code = "faster_over_budget"
    estimate: MachineEstimate
    needed: str
    left: str
    budget: str

    def text(self) -> str:
        need, left = shortage(self.needed, self.left)
        return f"{self.estimate.would_take}, but need {need}, and {left} is left of {self.budget}."


@dataclass(frozen=True)
class FasterOverRate(Reason):
    """`limit`: limits.rate, dollars an hour."""

    code = "faster_over_rate"
    estimate: MachineEstimate
    limit: str

    def text(self) -> str:
        return f"{self.estimate.would_take}, but cost more per hour than limits.rate of ${self.limit}."


@dataclass(frozen=True)
class FasterOverSlots(Reason):
    code = "faster_over_slots"
    estimate: MachineEstimate
    provider: str
    slots: int

    def text(self) -> str:
        return f"{self.estimate.would_take}, but {self.provider} has {counted(self.slots, 'machine')} in all."


@dataclass(frozen=True)
class FasterSplitsBatch(Reason):
    """Each training process needs a sample of every batch."""

    code = "faster_splits_batch"
    estimate: MachineEstimate
    min_batch: int
    processes: int

    def text(self) -> str:
        split = f"a batch of {self.min_batch} can't be split over {self.processes} processes"
        return f"{self.estimate.would_take}, but {split}."


@dataclass(frozen=True)
class MoreNotFaster(Reason):
    """`serial_fraction`: the part of an epoch that more machines don't shorten, where it is known."""

    code = "more_not_faster"
    estimate: MachineEstimate
    serial_fraction: FiniteFloat | None

    def text(self) -> str:
        serial = self.serial_fraction
        why = "" if serial is None else f": {100 * serial:.0f} % of epoch time doesn't parallelize"
        return f"{self.estimate.would_take}, not less{why}."


@dataclass(frozen=True)
class NoMoreMachines(Reason):
    code = "no_more_machines"
    provider: str
    slots: int

    def text(self) -> str:
        return f"{self.provider} has {counted(self.slots, 'machine')} in all."


@dataclass(frozen=True)
class MoreNotMeasured(Reason):
    code = "more_not_measured"
    nodes: int
    type: str

    def text(self) -> str:
        return f"More than {self.nodes} {self.type} {'has' if self.nodes == 1 else 'have'} not been measured."


@dataclass(frozen=True)
class FixedTime(Reason):
    code = "fixed_time"
    fixed_s: FiniteFloat

    def text(self) -> str:
        return f"{format_duration(self.fixed_s)} of it are startup and finish, which more machines don't shorten."


@dataclass(frozen=True)
class TypesNotMeasured(Reason):
    code = "types_not_measured"
    types: tuple[str, ...]

    def text(self) -> str:
        return f"{', '.join(self.types)} {'has' if len(self.types) == 1 else 'have'} not been measured."


def _at(per_hour: str | None) -> str:
    return f" for ${per_hour} per hour" if per_hour else ""


def _until(time_limit_s: float | None) -> str:
    return "" if time_limit_s is None else f" and is stopped after {format_duration(time_limit_s)}"

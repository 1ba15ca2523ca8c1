# SPDX-License-Identifier: Apache-2.0
"""Which machines, and how many, finish a job within limits.time at the lowest cost.

The cheapest option that meets the limit with its margin is chosen; of equally cheap ones the faster. Only options that
were measured or follow from measurements (`scaling`) are considered; while nothing is measured the job runs as
requested, and that run becomes the first measurement. A node count that the user requests is never changed: then this
only predicts its time and cost. `sizing_reasons` explains the choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

from pydantic import TypeAdapter

from shoestring_core import money
from shoestring_core.decide import funding
from shoestring_core.decide.conditions import hourly_cost
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import rank_offers
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.scaling import Basis, Estimate, Measurement, ScalingModel
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.spec import MAX_NODES
from shoestring_core.wording import NestedReason

InfeasibleReason = Literal["", "slots", "batch", "rate", "budget", "time"]
Outcome = Literal["chosen", "requested", "unmeasured", "infeasible"]


@dataclass(frozen=True)
class SizingInputs:
    """Everything that the choice depends on; stored with the job, so that the choice can be recomputed.

    requirements     what a single machine must be
    time_limit_s     limits.time
    requested_nodes  the node count that the user requested
    epochs           how many the job trains
    evaluations      how often it is evaluated before it ends
    processes        training processes on each machine; 1 where there are as many as the batch allows
    min_batch        its smallest batch: every process needs a sample of it
    budget_left      micro-dollars left of its tightest budget, which is `budget_name`
    measurements     of the same work, newest first
    timeouts         by provider
    """

    requirements: Requirements
    time_limit_s: float | None
    requested_nodes: int | None
    epochs: float
    evaluations: int
    processes: int
    min_batch: int
    offers: tuple[Offer, ...]
    budget_left: int | None
    budget_name: str
    measurements: tuple[Measurement, ...]
    timeouts: dict[str, Timeouts]

    def best_offer(self, type_: str) -> Offer | None:
        """The offer of a type of machine that a job would get."""
        return rank_offers(self.offers, replace(self.requirements, type=type_)).best


@dataclass(frozen=True)
class Option:
    """A number of machines of one type. Seconds, and micro-dollars for all machines together.

    run_s              expected time, as limits.time counts; run_upper_s the same with its margin
    fixed_s            the part of run_s before the first step and after the last
    serial_fraction    the part of an epoch that more machines don't shorten; None if only one count is measured
    cost               expected cost at today's price
    budget_needed      what must be left of the budget: the cost with the margin, and what is held in advance
    infeasible_reason  why it can't be chosen; empty if it can
    """

    type: str
    market: str
    nodes: int
    basis: Basis
    run_s: float
    run_upper_s: float
    fixed_s: float
    serial_fraction: float | None
    cost: int
    budget_needed: int
    infeasible_reason: InfeasibleReason

    @property
    def name(self) -> str:
        return f"{self.nodes} × {self.type}"

    @property
    def sufficient_time_limit_s(self) -> int:
        """A limits.time that it meets, in full seconds; from an hour on in full minutes, as durations are written."""
        unit = 1 if self.run_upper_s < 3600 else 60
        return unit * ceil(self.run_upper_s / unit)


@dataclass(frozen=True)
class Choice:
    """What a job is to run on.

    outcome  chosen: for its time limit; requested: the user's node count, or one machine without a limit;
             unmeasured: no measurements; infeasible: nothing meets the limit
    type     the type of machine to rent; None: whatever is cheapest
    option   the prediction for it; if infeasible, for the fastest option
    options  what was considered, by type and count
    sufficient_time_limit_s  the limits.time that would be enough, where it is too short
    """

    outcome: Outcome
    nodes: int
    type: str | None
    option: Option | None
    options: tuple[Option, ...]
    sufficient_time_limit_s: int | None


@dataclass(frozen=True)
class SizingRecord:
    """Why a job runs on its machines; stored with it."""

    inputs: SizingInputs
    choice: Choice
    reason: NestedReason

    def as_json(self) -> dict[str, Any]:
        tree: dict[str, Any] = _RECORD.dump_python(self, mode="json")
        return tree

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> SizingRecord:
        return _RECORD.validate_python(tree)


def choose_machines(inputs: SizingInputs) -> Choice:
    """The machines for a job."""
    options = tuple(_options(inputs))
    limited = inputs.time_limit_s is not None
    count = inputs.requested_nodes if inputs.requested_nodes is not None or limited else 1
    eligible = [option for option in options if count in (None, option.nodes)]
    feasible = [option for option in eligible if not option.infeasible_reason]
    if feasible:
        outcome: Outcome = "chosen" if count is None else "requested"
        return _choice(inputs, outcome, min(feasible, key=by_cost), options)
    if count is not None and eligible:
        return _choice(inputs, "requested", min(eligible, key=by_cost), options)
    if options and count is None:
        return _infeasible(options)
    return Choice("unmeasured", count or 1, None, None, options, None)


def by_cost(option: Option) -> tuple[int, float, int, str]:
    """Sort key: the cheapest first, of equally cheap ones the fastest."""
    return option.cost, option.run_s, option.nodes, option.type


def _options(inputs: SizingInputs) -> Iterable[Option]:
    for type_ in sorted({measurement.type for measurement in inputs.measurements}):
        offer = inputs.best_offer(type_)
        scaling = ScalingModel(measurement for measurement in inputs.measurements if measurement.type == type_)
        if offer is None:
            continue
        for nodes in scaling.node_counts:
            if nodes <= MAX_NODES and (option := _option(inputs, offer, scaling, nodes)):
                yield option


def _option(inputs: SizingInputs, offer: Offer, scaling: ScalingModel, nodes: int) -> Option | None:
    estimate = scaling.estimate(nodes, inputs.epochs, inputs.evaluations)
    if estimate is None:
        return None
    return Option(
        type=offer.type,
        market=offer.market,
        nodes=nodes,
        basis=estimate.basis,
        run_s=estimate.run_s,
        run_upper_s=estimate.run_upper_s,
        fixed_s=estimate.fixed_s,
        serial_fraction=estimate.serial_fraction,
        cost=nodes * money.cost(offer.price, round(estimate.rented_s * 1e6)),
        budget_needed=_budget_needed(inputs, offer, nodes, estimate),
        infeasible_reason=infeasible_reason(inputs, offer, nodes, estimate),
    )


def infeasible_reason(
    inputs: SizingInputs, offer: Offer, nodes: int, estimate: Estimate | None = None
) -> InfeasibleReason:  # fmt: skip
    """Why so many machines of an offer can't be chosen, as far as it is known; empty if they can."""
    if offer.slots is not None and nodes > offer.slots:
        return "slots"
    if nodes * inputs.processes > inputs.min_batch:
        return "batch"
    if (rate := inputs.requirements.rate) is not None and hourly_cost(offer, nodes) > rate:
        return "rate"
    if estimate is None:
        return ""
    if inputs.budget_left is not None and _budget_needed(inputs, offer, nodes, estimate) > inputs.budget_left:
        return "budget"
    return "time" if inputs.time_limit_s is not None and estimate.run_upper_s > inputs.time_limit_s else ""


def _budget_needed(inputs: SizingInputs, offer: Offer, nodes: int, estimate: Estimate) -> int:
    """The cost with its margin and the hold in advance; only the hold if it never has to be extended."""
    timeouts, rented_us = inputs.timeouts[offer.provider], round((estimate.rented_s + estimate.margin_s) * 1e6)
    reserved_time = inputs.requirements.reserved_time
    hold = funding.initial_hold(offer.rate_cap, timeouts, offer.billing.minimum, reserved_time)
    extended = rented_us > timeouts.funding_lease // 2 and not reserved_time
    return nodes * (hold + money.cost_ceiling(offer.price, rented_us) if extended else hold)


def _choice(inputs: SizingInputs, outcome: Outcome, best: Option, options: tuple[Option, ...]) -> Choice:
    too_slow = inputs.time_limit_s is not None and best.run_upper_s > inputs.time_limit_s
    return Choice(
        outcome, best.nodes, best.type, best, options, best.sufficient_time_limit_s if too_slow else None
    )  # fmt: skip


def _infeasible(options: tuple[Option, ...]) -> Choice:
    too_slow = [option for option in options if option.infeasible_reason == "time"]
    if not too_slow:
        return Choice("infeasible", 1, None, None, options, None)
    fastest = min(too_slow, key=lambda option: (option.run_upper_s, option.cost))
    return Choice("infeasible", fastest.nodes, None, fastest, options, fastest.sufficient_time_limit_s)


_RECORD = TypeAdapter(SizingRecord)

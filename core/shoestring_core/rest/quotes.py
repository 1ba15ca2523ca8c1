# SPDX-License-Identifier: Apache-2.0
"""Quotes, and how well they held."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from shoestring_core.decide.quotes import MAX_MACHINE_COUNTS
from shoestring_core.rest.base import Money, Reason, RequestBody, Resource
from shoestring_core.rest.offers import Offer
from shoestring_core.spec import MAX_NODES


class CreateQuoteRequest(RequestBody):
    """Body of POST /v1/quotes: a spec as POST /v1/jobs takes it."""

    spec: dict[str, Any] | str
    machine_counts: list[Annotated[int, Field(ge=1, le=MAX_NODES)]] = Field(default=[], max_length=MAX_MACHINE_COUNTS)
    """Numbers of machines to compare. Without any: those that earlier runs say something about."""


class SecondsBand(Resource):
    """Four runs of five take between `low` and `high`, at most one of ten less; half take less than `expected`."""

    low: float
    expected: float
    high: float


class MoneyBand(Resource):
    """Four runs of five cost between `low` and `high`, at most one of ten less; half cost less than `expected`."""

    low: Money
    expected: Money
    high: Money


class Interruptions(Resource):
    """How likely a job is to be interrupted, and where that comes from."""

    source: Literal["on_demand", "measured", "advisor", "unknown"]
    """measured: on spot machines of this service, and in the bands; advisor: only the offer's `interruption` is known,
    and not in the bands; unknown: nothing is; on_demand: it never is."""
    probability: float | None = None
    """Of at least one interruption."""
    losses: int | None = None
    """Spot machines of this type that were interrupted."""
    machine_hours: float | None = None
    """In which that happened."""


class QuotedOffer(Resource):
    """An offer for a job, with a number of machines. Money is for all machines together."""

    nodes: int
    offer: Offer
    basis: Literal["measured", "scaled", "unknown"]
    """measured: from the team's runs on as many machines of this type; scaled: from `scaled_from`; unknown: no run says
    anything, so there is no time and no cost."""
    scaled_from: list[str]
    """Machines that were measured, such as "2 × g5.xlarge"."""
    runs: int
    """Number of runs that were measured."""
    time_s: SecondsBand | None
    """From the launch of the machines until the job ends; the time in the queue is not included."""
    cost: MoneyBand | None
    """At today's price."""
    hold: Money
    """What is held when the job starts."""
    max_cost: Money | None
    """The most that limits.time and limits.cost allow; None: they limit nothing."""
    left_after_hold: Money | None
    """What the tightest budget has left when the job has started. Negative: so much is missing. None: no limit."""
    left_after_end: Money | None
    """The same when the expected cost is paid."""
    interruptions: Interruptions
    infeasible_reason: Literal["slots", "batch", "rate", "budget", "time"] | None = None
    """Why it can't be chosen."""
    outlasts_notice: Reason | None = None
    """Why an interruption loses work: the job's checkpoints take longer to store than a spot machine has after its
    notice. None: not as far as is known."""


class Quote(Resource):
    """Where a job would run, how long it takes and what it costs. Nothing is stored, nothing spent."""

    at: datetime
    outcome: Literal["chosen", "requested", "unmeasured"]
    """chosen: the machines are, for limits.time; requested: as the spec says; unmeasured: no similar run."""
    nodes: int
    type: str | None
    """The type of machine; None: whatever is cheapest."""
    summary: Reason
    why_not_faster: Reason | None
    offers: list[QuotedOffer]
    """Those that suit the job, best first: it gets the first one that has free slots."""
    no_offer: Reason | None
    """Why there are none: what the job would wait for."""
    machine_counts: list[QuotedOffer]
    """Of each type of machine the best offer, with other numbers of machines: time against cost."""
    quotas: list[Reason]
    """Of the providers' accounts, that the job's machines count against, or would if the quotas covered them."""
    time_limit_s: float | None
    sufficient_time_limit_s: int | None
    """The limits.time that would be enough, where it is too short."""
    runs: int
    """The team's earlier runs of the same work."""
    deadline: Reason | None = None
    """What limits.deadline would commit, if the job has one."""


class KeptQuote(Resource):
    """The quote of the offer that a job would have got when it was submitted, beside what it took."""

    nodes: int
    type: str
    market: str
    basis: Literal["measured", "scaled", "unknown"]
    runs: int
    time_s: SecondsBand
    cost: MoneyBand
    actual: QuoteOutcome | None
    """None: it can't be compared; `summary` says why."""
    summary: Reason


class QuoteOutcome(Resource):
    """From the launch of the machines until the job ended, and what they cost; where both lie to the quoted bands."""

    time_s: float
    cost: Money
    time_place: Literal["below", "within", "above"]
    cost_place: Literal["below", "within", "above"]


class RecipeCalibration(Resource):
    """How many of a recipe's finished jobs took a time, and a cost, within what was quoted."""

    recipe: str
    compared: int
    time_within: int
    cost_within: int
    not_compared: int
    """Jobs that stopped early, were paused, or ran on other machines than those that were quoted."""


class Calibration(Resource):
    """How well the quotes of the team's newest jobs held."""

    level: float
    """The share of runs that a band is made to hold."""
    recipes: list[RecipeCalibration]
    compared: int
    time_within: int
    cost_within: int
    summary: Reason

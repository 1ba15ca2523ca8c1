# SPDX-License-Identifier: Apache-2.0
"""Quotes: where a job would run, how long it takes and what it costs, before it is submitted.

The offers are ranked by the function that places jobs, so that the first is the one that a submitted job gets while it
has free slots. Time and cost come from what the team's earlier runs of the same work took; nothing else is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter

from shoestring_core import money
from shoestring_core.decide.billing import hourly
from shoestring_core.decide.funding import hold_for
from shoestring_core.decide.notices import StoredCheckpoint, outlasts_notice
from shoestring_core.decide.offers import Hardware, Offer
from shoestring_core.decide.placement import rank_offers
from shoestring_core.decide.predictions import Band, RunBands, RunForecast, SpotHistory, deviations, predict
from shoestring_core.decide.quotas import account_quotas
from shoestring_core.decide.refusals import RecentRefusal
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.scaling import Measurement, ScalingModel
from shoestring_core.decide.sizing import InfeasibleReason, SizingInputs, infeasible_reason
from shoestring_core.wording import NestedReason
from shoestring_core.wording.offers import AccountQuota

Basis = Literal["measured", "scaled", "unknown"]

MAX_OFFERS = 50
"""Offers of a quote: the best ones, as they are ranked."""

MAX_MACHINE_COUNTS = 8
"""Numbers of machines that a quote may be asked about."""

MAX_COMPARED_TYPES = 8
"""Types of machines of which other numbers are quoted: the cheapest ones."""

SPREADS = {"measured": 0.05, "interpolated": 0.10, "estimated": 0.15}
"""Assumed standard deviation of the logarithm of a run's time, for want of runs, by the basis of its estimate. With one
run the bands are about as wide as the margins of `scaling`."""

OTHER_TYPE_SPREAD = 0.25
"""The same for a type of machine that is only known to have the same GPUs as a measured one."""


@dataclass(frozen=True)
class Balance:
    """Micro-dollars of an account that pays for the job. `left` may be negative; None: no limit."""

    name: str
    left: int | None


@dataclass(frozen=True)
class QuoteInputs:
    """Everything that a quote depends on.

    sizing          what the choice of machines depends on: measurements, offers, limits
    requirements    of the job as it would be submitted, with the number and type of machines that were chosen for it
    machine_counts  other numbers of machines to quote
    cost_limit      limits.cost, micro-dollars
    balances        of all accounts that pay
    spot_histories  by provider and type
    checkpoints     that earlier runs of the same work have stored, without their final ones
    now             µs UTC
    """

    sizing: SizingInputs
    requirements: Requirements
    machine_counts: tuple[int, ...]
    cost_limit: int | None
    balances: tuple[Balance, ...]
    refusals: tuple[RecentRefusal, ...]
    spot_histories: Mapping[tuple[str, str], SpotHistory]
    now: int
    checkpoints: tuple[StoredCheckpoint, ...] = ()


@dataclass(frozen=True)
class Amounts:
    """A band in micro-dollars."""

    low: int
    expected: int
    high: int


@dataclass(frozen=True)
class Interruptions:
    """How likely the job is to be interrupted.

    source       on_demand: never; measured: from spot machines of this service; advisor: only a monthly band of the
                 type is known; unknown: nothing is. The bands include interruptions only if they are measured
    probability  of at least one; None: not known
    history      what was measured
    """

    source: Literal["on_demand", "measured", "advisor", "unknown"]
    probability: float | None = None
    history: SpotHistory | None = None


@dataclass(frozen=True)
class QuotedOffer:
    """An offer for a job, with a number of machines. Money is for all machines together, in micro-dollars.

    basis              measured: from runs on as many machines of this type; scaled: from other runs, see `scaled_from`;
                       unknown: no run says anything, so there is no time and no cost
    scaled_from        the machines that the runs were on, such as "2 × g5.xlarge"
    runs               the number of those runs
    time_s             from the launch of the machines until the job ends
    hold               what is held to start
    max_cost           the most that the limits of the spec allow; None: they limit nothing
    left_after_hold    what the tightest budget has left then, and `left_after_end` when the expected cost is paid;
                       negative: so much is missing. None: no limit
    infeasible_reason  why it can't be chosen; empty if it can
    forecast           what time and cost were made from; None: unknown
    outlasts_notice    why an interruption loses work, because checkpoints take too long; None: not as far as is known
    """

    nodes: int
    offer: Offer
    basis: Basis
    scaled_from: tuple[str, ...]
    runs: int
    time_s: Band | None
    cost: Amounts | None
    hold: int
    max_cost: int | None
    left_after_hold: int | None
    left_after_end: int | None
    interruptions: Interruptions
    infeasible_reason: InfeasibleReason
    forecast: RunForecast | None
    outlasts_notice: NestedReason | None = None

    def as_json(self) -> dict[str, Any]:
        tree: dict[str, Any] = _OFFER.dump_python(self, mode="json")
        return tree

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> QuotedOffer:
        return _OFFER.validate_python(tree)


@dataclass(frozen=True)
class Quote:
    """
    offers          those that suit the job, the one that it would get first
    no_offer        why none does
    quotas          of the account, that the machines count against, or would if the quotas covered them; without
                    offers none, because no_offer says what is missing
    machine_counts  of each type the best offer, with other numbers of machines: time against cost
    """

    offers: tuple[QuotedOffer, ...]
    no_offer: NestedReason | None
    machine_counts: tuple[QuotedOffer, ...] = ()
    quotas: tuple[AccountQuota, ...] = ()


def make_quote(inputs: QuoteInputs) -> Quote:
    quoted = _OfferQuotes(inputs)
    requirements = inputs.requirements
    placement = rank_offers(inputs.sizing.offers, requirements, inputs.now, inputs.refusals)
    offers = tuple(quoted.of(offer, requirements.nodes) for offer in placement.ranked[:MAX_OFFERS])
    others = tuple(quoted.of(offer, nodes) for offer, nodes in _other_counts(inputs, quoted))
    if not offers:
        return Quote((), placement.why_none, others)
    above_quota = [one.offer for one in placement.passed_over if one.reason == "above_quota"]
    return Quote(offers, None, others, account_quotas([*placement.ranked, *above_quota]))


def quote_first(inputs: QuoteInputs) -> QuotedOffer | None:
    """The first offer of `make_quote`; None: no offer suits the job, or no run says what it takes."""
    requirements = inputs.requirements
    best = rank_offers(inputs.sizing.offers, requirements, inputs.now, inputs.refusals).best
    quoted = None if best is None else _OfferQuotes(inputs).of(best, requirements.nodes)
    return quoted if quoted and quoted.time_s and quoted.cost else None


def quoted_on(quoted: QuotedOffer, offer: Offer, nodes: int) -> tuple[float, int] | None:
    """Expected seconds and micro-dollars of a quoted job on as many machines of the same type, in any market and at any
    price; None: the quote says nothing of that."""
    if (offer.type, nodes) != (quoted.offer.type, quoted.nodes) or not (quoted.time_s and quoted.cost):
        return None
    if offer.market != quoted.offer.market and quoted.forecast and quoted.forecast.spot:
        bands = predict(replace(quoted.forecast, spot=None))  # interruptions were of the other market
        return bands.time_s.expected, _cost(offer, nodes, bands).expected
    before, price = (Decimal(hourly(one.billing.extras, one.price)) for one in (quoted.offer, offer))
    return quoted.time_s.expected, round(quoted.cost.expected * price / before) if before else quoted.cost.expected


def default_counts(measured: Iterable[int], nodes: int) -> tuple[int, ...]:
    """Numbers of machines that a quote compares if it isn't asked for any: powers of two as far as can be estimated,
    what was measured, and what the job would get."""
    known = set(measured)
    powers = {count for power in range(7) if (count := 2**power) <= 2 * max(known, default=0)}
    return tuple(sorted(known | powers | {nodes}))


def _other_counts(inputs: QuoteInputs, quoted: _OfferQuotes) -> Iterable[tuple[Offer, int]]:
    """The best offer of each type, by type, with each number of machines; without asking, only of measured ones."""
    ranked = rank_offers(inputs.sizing.offers, inputs.sizing.requirements, inputs.now, inputs.refusals).ranked
    best: dict[str, Offer] = {}
    for offer in ranked:
        if inputs.machine_counts or quoted.known(offer) is not None:
            best.setdefault(offer.type, offer)
    for offer in list(best.values())[:MAX_COMPARED_TYPES]:
        if inputs.machine_counts:
            yield from ((offer, nodes) for nodes in inputs.machine_counts)
        elif (known := quoted.known(offer)) is not None:
            model, _ = known
            counts = default_counts(model.runs, inputs.requirements.nodes)
            yield from ((offer, nodes) for nodes in counts if nodes in model.node_counts)


class _OfferQuotes:
    """Quotes of single offers. What does not differ between them is worked out once."""

    def __init__(self, inputs: QuoteInputs) -> None:
        self._inputs = inputs
        self._by_type: dict[str, list[Measurement]] = {}
        for measurement in inputs.sizing.measurements:
            self._by_type.setdefault(measurement.type, []).append(measurement)
        self._hardware = {offer.type: offer.hardware for offer in inputs.sizing.offers}
        self._predict = cache(predict)
        self._model = cache(lambda type_: ScalingModel(self._by_type[type_]))

    def known(self, offer: Offer) -> tuple[ScalingModel, str] | None:
        """The model of its type, or of one with the same GPUs, and that type; None: neither was measured."""
        if offer.type in self._by_type:
            return self._model(offer.type), offer.type
        for type_ in sorted(self._by_type):
            if _have_same_gpus(offer.hardware, self._hardware.get(type_)):
                return self._model(type_), type_
        return None

    def of(self, offer: Offer, nodes: int) -> QuotedOffer:
        inputs = self._inputs
        hold = hold_for(offer, replace(inputs.requirements, nodes=nodes), inputs.sizing.timeouts)
        quoted = QuotedOffer(
            nodes=nodes,
            offer=offer,
            basis="unknown",
            scaled_from=(),
            runs=0,
            time_s=None,
            cost=None,
            hold=hold,
            max_cost=self._max_cost(offer, nodes),
            left_after_hold=self._left_after(hold),
            left_after_end=None,
            interruptions=_interruptions(offer, None),
            infeasible_reason="",
            forecast=None,
            outlasts_notice=outlasts_notice(inputs.checkpoints, offer, inputs.sizing.timeouts[offer.provider]),
        )
        return self._with_estimate(quoted)

    def _with_estimate(self, quoted: QuotedOffer) -> QuotedOffer:
        offer, nodes, sizing = quoted.offer, quoted.nodes, self._inputs.sizing
        known = self.known(offer)
        if known is None:
            return replace(quoted, infeasible_reason=infeasible_reason(sizing, offer, nodes))
        model, type_ = known
        estimate = model.estimate(nodes, sizing.epochs, sizing.evaluations) if nodes in model.node_counts else None
        if estimate is None:
            return replace(quoted, infeasible_reason=infeasible_reason(sizing, offer, nodes))
        measured = nodes in model.runs and type_ == offer.type
        counts = (nodes,) if nodes in model.runs else tuple(sorted(model.runs))
        history = self._inputs.spot_histories.get((offer.provider, offer.type)) if offer.market == "spot" else None
        if history and not history.covers(nodes * estimate.run_s):
            history = None
        forecast = RunForecast(
            run_s=estimate.run_s,
            boot_s=estimate.boot_s,
            restart_s=estimate.boot_s + estimate.startup_s,
            teardown_s=estimate.teardown_s,
            nodes=nodes,
            deviations=deviations(estimate.ratios),
            spread=SPREADS[estimate.basis] if type_ == offer.type else OTHER_TYPE_SPREAD,
            spot=history,
        )
        bands = self._predict(forecast)
        cost = _cost(offer, nodes, bands)
        return replace(
            quoted,
            basis="measured" if measured else "scaled",
            scaled_from=() if measured else tuple(f"{count} × {type_}" for count in counts),
            runs=sum(len(model.runs[count]) for count in counts),
            time_s=bands.time_s,
            cost=cost,
            left_after_end=self._left_after(cost.expected),
            interruptions=_interruptions(offer, history, bands),
            infeasible_reason=infeasible_reason(sizing, offer, nodes, estimate),
            forecast=forecast,
        )

    def _max_cost(self, offer: Offer, nodes: int) -> int | None:
        """The worst case by the limits of the spec: the highest price from launch to limits.time, and limits.cost."""
        limits = [self._inputs.cost_limit]
        if (time_limit_s := self._inputs.sizing.time_limit_s) is not None:
            timeouts = self._inputs.sizing.timeouts[offer.provider]
            longest = round(time_limit_s * 1e6) + timeouts.boot + timeouts.drain
            limits.append(nodes * money.cost_ceiling(offer.rate_cap, longest))
        return min((limit for limit in limits if limit is not None), default=None)

    def _left_after(self, spent: int) -> int | None:
        left = [balance.left for balance in self._inputs.balances if balance.left is not None]
        return min(left) - spent if left else None


def _have_same_gpus(one: Hardware | None, other: Hardware | None) -> bool:
    return bool(one and other and one.gpu and (one.gpu, one.gpus) == (other.gpu, other.gpus))


def _cost(offer: Offer, nodes: int, bands: RunBands) -> Amounts:
    """At today's price with disk and address, for at least the time that the provider bills."""
    per_hour = hourly(offer.billing.extras, offer.price)
    band = (bands.paid_s.low, bands.paid_s.expected, bands.paid_s.high)
    return Amounts(*(nodes * money.cost(per_hour, max(round(paid_s * 1e6), offer.billing.minimum)) for paid_s in band))


def _interruptions(offer: Offer, history: SpotHistory | None, bands: RunBands | None = None) -> Interruptions:
    if offer.market != "spot":
        return Interruptions("on_demand", 0.0)
    if history and bands:
        return Interruptions("measured", bands.interrupted, history)
    return Interruptions("advisor" if offer.interruption else "unknown")


_OFFER = TypeAdapter(QuotedOffer)

# SPDX-License-Identifier: Apache-2.0
"""Quotes."""

from __future__ import annotations

from collections.abc import Sequence

from shoestring_core import money, rest, wording
from shoestring_core.decide.calibration import Comparison, RecipeCalibration, RunOutcome, compare
from shoestring_core.decide.predictions import LEVEL
from shoestring_core.decide.quotes import Amounts, Interruptions, Quote, QuotedOffer, QuoteInputs
from shoestring_core.decide.sizing import Choice
from shoestring_core.wording.deadlines import DeadlinePromised
from shoestring_core.wording.sizing import MachinesQuoted, Sized

from shoestring_api.serializers.offers import serialize_offer
from shoestring_api.serializers.times import to_datetime


def serialize_quote(
    quote: Quote, inputs: QuoteInputs, choice: Choice, reason: Sized, deadline: DeadlinePromised | None
) -> rest.Quote:
    assert choice.outcome != "infeasible"
    best = quote.offers[0] if quote.offers else None
    return rest.Quote(
        at=to_datetime(inputs.now),
        outcome=choice.outcome,
        nodes=choice.nodes,
        type=choice.type,
        summary=rest.Reason.of(_summary(best, inputs, choice) if best and best.time_s else reason.summary),
        why_not_faster=rest.Reason.of(reason.why_not_faster) if reason.why_not_faster else None,
        offers=[_serialize(one) for one in quote.offers],
        no_offer=rest.Reason.of(quote.no_offer) if quote.no_offer else None,
        machine_counts=[_serialize(one) for one in quote.machine_counts],
        quotas=[rest.Reason.of(one) for one in quote.quotas],
        time_limit_s=inputs.sizing.time_limit_s,
        sufficient_time_limit_s=choice.sufficient_time_limit_s,
        runs=len({measurement.job for measurement in inputs.sizing.measurements}),
        deadline=rest.Reason.of(deadline) if deadline else None,
    )


def _summary(best: QuotedOffer, inputs: QuoteInputs, choice: Choice) -> MachinesQuoted:
    """Without the estimate that chose the machines: beside the band of the same offer it would be a second one."""
    limit_s, sufficient_s = inputs.sizing.time_limit_s, choice.sufficient_time_limit_s
    return MachinesQuoted(f"{best.nodes} × {best.offer.type}", choice.outcome == "chosen", limit_s, sufficient_s)


def serialize_kept_quote(quoted: QuotedOffer, outcome: RunOutcome) -> rest.KeptQuote:
    """`quoted` has an estimate: no other is kept."""
    time_s, cost, compared = _seconds(quoted), quoted.cost, compare(quoted, outcome)
    assert time_s
    assert cost
    actual: rest.QuoteOutcome | None = None
    then: wording.Reason
    if isinstance(compared, Comparison):
        places = (compared.time_place, compared.cost_place)
        actual = rest.QuoteOutcome(
            time_s=round(compared.time_s, 3),
            cost=rest.Money.of(compared.cost),
            time_place=compared.time_place,
            cost_place=compared.cost_place,
        )
        then = wording.quotes.QuoteHeld(compared.time_s, money.to_decimal(compared.cost), *places)
    else:
        then = wording.quotes.QuoteNotCompared(compared)
    summary = wording.quotes.QuoteWas(
        machines=f"{quoted.nodes} × {quoted.offer.type}",
        market=quoted.offer.market,
        time_low_s=time_s.low,
        time_high_s=time_s.high,
        cost_low=money.to_decimal(cost.low),
        cost_high=money.to_decimal(cost.high),
        then=then,
    )
    return rest.KeptQuote(
        nodes=quoted.nodes,
        type=quoted.offer.type,
        market=quoted.offer.market,
        basis=quoted.basis,
        runs=quoted.runs,
        time_s=time_s,
        cost=_money_band(cost),
        actual=actual,
        summary=rest.Reason.of(summary),
    )


def serialize_calibration(recipes: Sequence[RecipeCalibration]) -> rest.Calibration:
    compared, time_within, cost_within = (
        sum(getattr(one, name) for one in recipes) for name in ("compared", "time_within", "cost_within")
    )
    return rest.Calibration(
        level=LEVEL,
        recipes=[
            rest.RecipeCalibration(
                recipe=one.recipe, compared=one.compared, time_within=one.time_within, cost_within=one.cost_within,
                not_compared=one.not_compared,
            )
            for one in recipes
        ],
        compared=compared,
        time_within=time_within,
        cost_within=cost_within,
        summary=rest.Reason.of(wording.quotes.Calibrated(compared, time_within, cost_within, round(100 * LEVEL))),
    )  # fmt: skip


def _serialize(quoted: QuotedOffer) -> rest.QuotedOffer:
    return rest.QuotedOffer(
        nodes=quoted.nodes,
        offer=serialize_offer(quoted.offer, available=True),
        basis=quoted.basis,
        scaled_from=list(quoted.scaled_from),
        runs=quoted.runs,
        time_s=_seconds(quoted),
        cost=_money_band(quoted.cost) if quoted.cost else None,
        hold=rest.Money.of(quoted.hold),
        max_cost=_money(quoted.max_cost),
        left_after_hold=_money(quoted.left_after_hold),
        left_after_end=_money(quoted.left_after_end),
        interruptions=_interruptions(quoted.interruptions),
        infeasible_reason=quoted.infeasible_reason or None,
        outlasts_notice=rest.Reason.of(quoted.outlasts_notice) if quoted.outlasts_notice else None,
    )


def _seconds(quoted: QuotedOffer) -> rest.SecondsBand | None:
    band = quoted.time_s
    if band is None:
        return None
    return rest.SecondsBand(low=round(band.low, 3), expected=round(band.expected, 3), high=round(band.high, 3))


def _money_band(band: Amounts) -> rest.MoneyBand:
    return rest.MoneyBand(
        low=rest.Money.of(band.low), expected=rest.Money.of(band.expected), high=rest.Money.of(band.high)
    )


def _money(amount: int | None) -> rest.Money | None:
    return None if amount is None else rest.Money.of(amount)


def _interruptions(known: Interruptions) -> rest.Interruptions:
    history = known.history
    return rest.Interruptions(
        source=known.source,
        probability=known.probability,
        losses=history.losses if history else None,
        machine_hours=round(history.up_s / 3600, 3) if history else None,
    )

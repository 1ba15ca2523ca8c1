# SPDX-License-Identifier: Apache-2.0
"""Quotes."""

from __future__ import annotations

from shoestring_core import rest
from shoestring_core.decide.quotes import Amounts, Interruptions, Quote, QuotedOffer, QuoteInputs
from shoestring_core.decide.sizing import Choice
from shoestring_core.wording.sizing import Sized

from shoestring_api.serializers.offers import serialize_offer
from shoestring_api.serializers.times import to_datetime


def serialize_quote(quote: Quote, inputs: QuoteInputs, choice: Choice, reason: Sized) -> rest.Quote:
    assert choice.outcome != "infeasible"
    return rest.Quote(
        at=to_datetime(inputs.now),
        outcome=choice.outcome,
        nodes=choice.nodes,
        type=choice.type,
        summary=rest.Reason.of(reason.summary),
        why_not_faster=rest.Reason.of(reason.why_not_faster) if reason.why_not_faster else None,
        offers=[_serialize(one) for one in quote.offers],
        no_offer=rest.Reason.of(quote.no_offer) if quote.no_offer else None,
        machine_counts=[_serialize(one) for one in quote.machine_counts],
        quotas=[rest.Reason.of(one) for one in quote.quotas],
        time_limit_s=inputs.sizing.time_limit_s,
        sufficient_time_limit_s=choice.sufficient_time_limit_s,
        runs=len({measurement.job for measurement in inputs.sizing.measurements}),
    )


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

# SPDX-License-Identifier: Apache-2.0
"""Quotes beside what happened, from values alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shoestring_core.decide.calibration import Comparison, RunOutcome, calibrate, compare
from shoestring_core.decide.quotes import QuotedOffer, quote_first
from shoestring_core.states import EndReason

from tests.core.decide.test_quotes import inputs, make_quote, measured, offer

S = 1_000_000
QUOTED = quote_first(inputs(offer("small", "1.00"), nodes=2, measurements=(measured(nodes=2, epoch_s=30),)))
assert QUOTED is not None


def outcome(quoted: QuotedOffer, share: float = 1.0, **fields) -> RunOutcome:
    """A run that took this share of what was expected."""
    assert quoted.time_s
    assert quoted.cost
    ended_at = 10 * S + round(share * quoted.time_s.expected * S)
    machines = frozenset((quoted.offer.type, quoted.offer.market, slot) for slot in range(quoted.nodes))
    cost = round(share * quoted.cost.expected)
    plain = RunOutcome(EndReason.SUCCEEDED, True, 10 * S, ended_at, cost, machines, False)
    return replace(plain, **fields)


def test_the_kept_quote_is_the_first_offer_and_reads_back_as_it_was_written():
    given = inputs(offer("small", "1.00"), offer("other", "2.00"), nodes=2, measurements=(measured(nodes=2),))
    assert quote_first(given) == make_quote(given).offers[0]
    assert QuotedOffer.from_json(QUOTED.as_json()) == QUOTED
    assert quote_first(inputs(offer("small", "1.00"))) is None  # no run says what it takes
    assert quote_first(inputs(measurements=(measured(),))) is None  # nothing is offered


@pytest.mark.parametrize(("share", "place"), [(0.5, "below"), (1.0, "within"), (2.0, "above")])
def test_time_and_cost_lie_below_within_or_above_the_band(share, place):
    compared = compare(QUOTED, outcome(QUOTED, share))
    assert isinstance(compared, Comparison)
    assert (compared.time_place, compared.cost_place) == (place, place)
    assert compared.time_s == pytest.approx(share * QUOTED.time_s.expected)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"settled": False}, "not_settled"),
        ({"end_reason": None}, "not_settled"),
        ({"end_reason": EndReason.GOAL_REACHED}, "ended_early"),
        ({"end_reason": EndReason.USER_STOP}, "ended_early"),
        ({"launched_at": None}, "ended_early"),
        ({"paused": True}, "paused"),
        ({"machines": frozenset({("small", "on_demand", 0), ("small", "on_demand", 1)})}, "other_machines"),
        ({"machines": frozenset({("small", "spot", 0)})}, "other_machines"),
    ],
)
def test_a_job_that_did_something_else_than_was_quoted_is_not_compared(fields, why):
    assert compare(QUOTED, outcome(QUOTED, **fields)) == why


def test_a_machine_that_was_replaced_is_the_same_machine():
    again = outcome(QUOTED).machines | {("small", "spot", 1)}
    assert isinstance(compare(QUOTED, outcome(QUOTED, machines=again)), Comparison)


def test_recipes_are_counted_by_what_can_be_compared():
    jobs = [("b", QUOTED, outcome(QUOTED, share)) for share in (1.0, 1.0, 2.0)]
    jobs += [("b", QUOTED, outcome(QUOTED, cost=10**9)), ("b", QUOTED, outcome(QUOTED, paused=True))]
    jobs += [("a", QUOTED, outcome(QUOTED, settled=False)), ("c", QUOTED, outcome(QUOTED))]
    first, second = calibrate(jobs)
    assert (first.recipe, first.compared, first.time_within, first.cost_within, first.not_compared) == ("b", 4, 3, 2, 1)
    assert (second.recipe, second.compared) == ("c", 1)

# SPDX-License-Identifier: Apache-2.0
"""What a job would cost and when it would end, decided from values alone."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from shoestring_core import money
from shoestring_core.decide.offers import Hardware, Offer, Quota
from shoestring_core.decide.placement import MAX_OFFER_AGE, rank_offers
from shoestring_core.decide.predictions import SpotHistory
from shoestring_core.decide.quotes import (
    MAX_COMPARED_TYPES,
    MAX_OFFERS,
    Balance,
    QuotedOffer,
    QuoteInputs,
    make_quote,
)
from shoestring_core.decide.refusals import RecentRefusal, RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.scaling import Measurement
from shoestring_core.decide.sizing import SizingInputs
from shoestring_core.decide.timeouts import Timeouts

NOW = 1_000 * MAX_OFFER_AGE
TIMEOUTS = {"local": Timeouts()}
A10G = Hardware(4, 16_384, "A10G", 1, 24_576)
FOUR_A10G = replace(A10G, gpus=4)
L4 = replace(A10G, gpu="L4")


def offer(type_: str, price: str, hardware: Hardware | None = A10G, market: str = "spot", **fields) -> Offer:
    plain = Offer("local", "east", "a", type_, market, price, "2.00", None, "test", True, hardware, fetched_at=NOW)
    return replace(plain, **fields)


def measured(type_: str = "small", nodes: int = 1, epoch_s: float = 50.0) -> Measurement:
    return Measurement(UUID(int=nodes), 1, type_, nodes, 10.0, epoch_s, 0.5, 3.0, 4.0, 6.0, 1.0, True)


def inputs(*offers: Offer, nodes: int = 1, measurements=(), histories=None, **fields) -> QuoteInputs:
    """Ten epochs, without an evaluation before the end."""
    sizing = SizingInputs(Requirements(), None, None, 10.0, 0, 1, 512, offers, None, "", measurements, TIMEOUTS)
    given = QuoteInputs(sizing, Requirements(nodes=nodes), (), None, (), (), histories or {}, NOW)
    return replace(given, **fields)


def best(given: QuoteInputs) -> QuotedOffer:
    return make_quote(given).offers[0]


def test_offers_are_ranked_as_the_scheduler_ranks_them():
    offers = (offer("a", "0.50"), offer("b", "0.40"), offer("c", "0.45", market="on_demand"), offer("d", "0.10"))
    full = RecentRefusal("local", "east", "a", "b", "spot", RefusalKind.CAPACITY, NOW - 1)
    stale = replace(offers[3], fetched_at=NOW - MAX_OFFER_AGE - 1)
    given = inputs(*offers[:3], stale, refusals=(full,))
    ranked = rank_offers(given.sizing.offers, given.requirements, NOW, (full,)).ranked
    assert [one.offer for one in make_quote(given).offers] == list(ranked)
    assert [one.offer.type for one in make_quote(given).offers] == ["c", "a", "b"]  # b was just refused, d is silent


def test_time_and_cost_of_a_measured_type_are_those_of_its_runs():
    quoted = best(inputs(offer("small", "1.00"), nodes=2, measurements=(measured(nodes=2, epoch_s=30),)))
    assert (quoted.basis, quoted.scaled_from, quoted.runs) == ("measured", (), 1)
    run_s = 3 + 4 + 10 * 30 + 6
    assert quoted.time_s.expected == pytest.approx(run_s, rel=0.02)
    assert quoted.cost.expected == pytest.approx(2 * money.cost("1.00", round((run_s + 1) * 1e6)), rel=0.02)
    assert quoted.time_s.low < run_s < quoted.time_s.high


def test_another_number_of_machines_is_scaled_and_one_too_far_away_is_unknown():
    known = (measured(nodes=1, epoch_s=50), measured(nodes=2, epoch_s=27))
    three, eight = make_quote(inputs(offer("small", "1.00"), measurements=known, machine_counts=(3, 8))).machine_counts
    assert (three.basis, three.scaled_from) == ("scaled", ("1 × small", "2 × small"))
    assert (eight.basis, eight.time_s, eight.cost) == ("unknown", None, None)


def test_a_type_with_the_same_gpus_is_scaled_from_it_and_other_gpus_are_unknown():
    offers = (offer("small", "1"), offer("large", "2"), offer("four", "3", FOUR_A10G), offer("l4", "4", L4))
    same = make_quote(inputs(*offers, measurements=(measured(),))).offers
    assert [(one.offer.type, one.basis) for one in same] == [
        ("small", "measured"), ("large", "scaled"), ("four", "unknown"), ("l4", "unknown"),
    ]  # fmt: skip
    assert same[1].scaled_from == ("1 × small",)
    assert same[1].time_s.high / same[1].time_s.low > 1.5 * same[0].time_s.high / same[0].time_s.low
    assert same[2].time_s is same[3].time_s is None


def test_machines_without_a_gpu_are_never_scaled_to_another_type():
    cpu = replace(A10G, gpu=None, gpus=0)
    both = inputs(offer("other", "1", cpu), offer("cpu", "2", cpu), measurements=(measured("cpu"),))
    assert [one.basis for one in make_quote(both).offers] == ["unknown", "measured"]


def test_interruptions_are_in_the_band_only_where_they_were_measured():
    often = {("local", "small"): SpotHistory(3600.0, 12, 12, 1200.0)}
    rarely = {("local", "small"): SpotHistory(60.0, 0, 0, 0.0)}
    known = (measured(epoch_s=100),)

    def quoted(one: Offer, histories=None) -> QuotedOffer:
        return best(inputs(one, measurements=known, histories=histories))

    calm = quoted(offer("small", "1", market="on_demand"), often)
    assert (calm.interruptions.source, calm.interruptions.probability) == ("on_demand", 0.0)
    spot = quoted(offer("small", "1"), often)
    assert spot.interruptions.source == "measured"
    assert spot.interruptions.probability > 0.3
    assert spot.time_s.high > 1.1 * calm.time_s.high
    published = quoted(offer("small", "1", interruption="5-10%"), rarely)
    assert (published.interruptions.source, published.interruptions.probability) == ("advisor", None)
    assert published.time_s == calm.time_s
    assert quoted(offer("small", "1"), rarely).interruptions.source == "unknown"


def test_a_machine_costs_at_least_what_its_provider_bills():
    hour = replace(offer("small", "1.00").billing, minimum=3_600_000_000)
    quoted = best(inputs(offer("small", "1.00", billing=hour), measurements=(measured(epoch_s=1),)))
    assert quoted.cost.low == quoted.cost.high == money.from_decimal("1.00")


def test_the_tightest_budget_counts_and_may_be_short():
    balances = (Balance("member", None), Balance("team", 5_000_000), Balance("org", 1_000))
    quoted = best(inputs(offer("small", "1.00"), measurements=(measured(),), balances=balances))
    assert quoted.left_after_hold == 1_000 - quoted.hold < 0
    assert quoted.left_after_end == 1_000 - quoted.cost.expected
    assert best(inputs(offer("small", "1.00"))).left_after_hold is None


def test_a_quote_is_bounded():
    types = [f"t{number:03}" for number in range(100)]
    offers = [offer(type_, f"{number + 1}") for number, type_ in enumerate(types)]
    many = make_quote(inputs(*offers, measurements=tuple(measured(type_) for type_ in types), machine_counts=(1, 2)))
    assert [one.offer.type for one in many.offers] == types[:MAX_OFFERS]
    assert [one.offer.type for one in many.machine_counts[::2]] == types[:MAX_COMPARED_TYPES]


def test_nothing_that_suits_is_said_with_its_reason():
    quoted = make_quote(inputs(offer("small", "1"), requirements=Requirements(type="huge")))
    assert quoted.offers == ()
    assert quoted.no_offer.code == "no_offer"
    assert make_quote(inputs(offer("small", "1"))).no_offer is None


def test_a_quota_that_does_not_cover_the_job_is_told_beside_the_offers_or_as_why_there_are_none():
    quota, hardware = Quota("G", 0, "the console"), Hardware(4, 16, "A10G", 1)
    none, other = replace(offer("small", "1"), quota=quota, hardware=hardware), offer("large", "2")
    assert [told.quota for told in make_quote(inputs(none, other)).quotas] == ["G"]
    alone = make_quote(inputs(none))
    assert (alone.no_offer.code, alone.quotas) == ("quota_below_need", ())


def test_a_stored_offer_is_read_back_as_it_was():
    quoted = best(inputs(offer("small", "1"), measurements=(measured(),)))
    assert QuotedOffer.from_json(quoted.as_json()) == quoted

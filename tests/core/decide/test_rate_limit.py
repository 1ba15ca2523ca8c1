# SPDX-License-Identifier: Apache-2.0
"""`limits.rate`: no machines that cost more an hour, all of a job's together, with their disks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoestring_core import money, spec
from shoestring_core.decide.conditions import hourly_cost
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import Placement, rank_offers, require_machines
from shoestring_core.decide.requirements import DiskNeed, Requirements
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.errors import InvalidSpec

from tests.core.decide.test_schedule import NOW, TIMEOUTS, offers, queued, snapshot
from tests.core.decide.test_sizing import SCALES, choose, inputs
from tests.core.decide.test_sizing import offer as sized
from tests.core.decide.test_unmet import ALL

DOLLAR = money.MICRO


def placed(rate: str, nodes: int = 1, **resources: object) -> Placement:
    """Under `limits.rate`, as it is stored and read again."""
    tree = {"recipe": "digits/quickstart", "resources": {"nodes": nodes} | resources, "limits": {"rate": rate}}
    stored = spec.parse(tree).model_dump(mode="json")
    assert spec.rate_limit_of_stored(stored) == money.from_decimal(rate)
    read = spec.JobSpec.from_stored(stored)
    return rank_offers(ALL, Requirements.of(read.resources, rate=read.limits.rate))


def test_dearer_machines_are_not_taken_and_the_limit_itself_may_be_reached():
    cheapest = placed("9", gpu="A10G").best
    assert cheapest is not None
    at = money.to_decimal(hourly_cost(cheapest, 1))
    assert placed(at, gpu="A10G").best == cheapest
    below = money.to_decimal(hourly_cost(cheapest, 1) - 1)
    assert placed(below, gpu="A10G").best is None


def test_it_is_the_sum_over_all_machines_that_counts():
    cheapest = placed("99", 4, gpu="A10G").best
    assert cheapest is not None
    each = hourly_cost(cheapest, 1)
    assert placed(money.to_decimal(4 * each), 4, gpu="A10G").best == cheapest
    short = placed(money.to_decimal(4 * each - 1), 4, gpu="A10G")
    assert short.best is None
    told = short.no_offer.text()
    assert f"At least ${money.to_decimal(4 * each)} per hour (4 × {cheapest.type}) would be needed; " in told
    assert f"limits.rate is ${money.to_decimal(4 * each - 1)}." in told
    assert f"The nearest is {cheapest.type} " in told
    assert told.endswith("change limits.rate to get it.")


def test_a_disk_that_makes_a_machine_too_dear_counts_too():
    plain = Requirements.of(spec.parse({"recipe": "digits/quickstart", "resources": {"gpu": "T4"}}).resources)
    cheapest = rank_offers(ALL, plain).ranked[0]
    limit = hourly_cost(cheapest, 1)
    assert rank_offers(ALL, replace(plain, rate=limit)).best == cheapest
    large = replace(plain, rate=limit, disk=DiskNeed(gib=10_000))
    assert rank_offers(ALL, large).best is None
    assert rank_offers(ALL, replace(large, rate=limit + 10 * DOLLAR)).best is not None


def test_with_another_condition_both_are_named_and_prices_that_may_fall_refuse_no_job():
    none = placed("0.01", gpu="A10G")
    require_machines(none)  # it may wait: spot prices move
    assert "No machine is offered with `limits.rate: 0.01`." in none.no_offer.text()
    both = placed("0.01", gpu="H100").no_offer.text()
    assert "change resources.gpu and limits.rate to get it" in both or "change limits.rate" in both


def test_a_job_whose_limit_nobody_meets_waits_and_holds_up_nobody():
    dear = queued(1)
    dear = replace(dear, requirements=replace(dear.requirements, rate=1))
    decision = schedule_jobs(snapshot(dear, queued(2)), offers(1), NOW, TIMEOUTS)
    assert [start.job for start in decision.starts] == [queued(2).job]
    (wait,) = decision.waits
    assert wait.reason == "capacity"
    assert wait.providers == ()


def test_as_many_machines_are_chosen_for_a_time_limit_as_the_rate_allows():
    """At $1 an hour each; 160 s on four, 280 s on two."""
    free = inputs(*SCALES, time_limit_s=180)
    assert choose(free).nodes == 4
    three = replace(free, requirements=replace(free.requirements, rate=3 * DOLLAR))
    found = choose(three)
    assert found.outcome == "infeasible"
    assert "cost more per hour than limits.rate of $3.00" in found.why_not_faster
    assert choose(replace(three, time_limit_s=600)).nodes == 1
    assert hourly_cost(sized(), 4) == 4 * DOLLAR


@given(
    prices=st.lists(st.integers(1, 5_000_000), min_size=1, max_size=6),
    nodes=st.integers(1, 8),
    rate=st.integers(0, 40_000_000),
)
def test_of_any_offers_exactly_those_within_the_limit_are_taken(prices: list[int], nodes: int, rate: int):
    some = [
        Offer("sim", "r", "", f"type {n}", "spot", money.to_decimal(price), "9", None, "test", True)
        for n, price in enumerate(prices)
    ]
    found = rank_offers(some, Requirements(nodes, rate=rate))
    within = {f"type {n}" for n, price in enumerate(prices) if nodes * price <= rate}
    assert {one.type for one in found.ranked} == within
    if not found.ranked:
        assert "limits.rate" in found.no_offer.text()


@pytest.mark.parametrize("wrong", ["-1", "nan", "1e400", "Infinity", "0.0000001", "9999999999", True, [1]])
def test_an_hourly_limit_that_is_no_amount_of_money_is_refused(wrong: object):
    with pytest.raises(InvalidSpec) as refused:
        spec.parse({"recipe": "digits/quickstart", "limits": {"rate": wrong}})
    assert [problem.pointer for problem in refused.value.problems] == ["/limits/rate"]

# SPDX-License-Identifier: Apache-2.0
"""Which machines finish a job in time for the least money, decided from values alone."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoestring_core import money, spec
from shoestring_core.decide import sizing
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.scaling import MARGINS, Measurement, Scaling, fit
from shoestring_core.decide.sizing import Case, Choice, choose
from shoestring_core.decide.timeouts import S, Timeouts

TIMEOUTS = Timeouts(funding_lease=60 * S)


def offer(type_: str = "small", price: str = "1.00", slots: int | None = 8, market: str = "spot") -> Offer:
    return Offer("local", "local", "", type_, market, price, "2.00", slots, "test", True)


def measured(nodes: int, epoch_s: float, type_: str = "small", **fields) -> Measurement:
    """A whole run of ten epochs whose start took 4 s and whose end 6 s."""
    return replace(
        Measurement(UUID(int=nodes), 1, type_, nodes, 10.0, epoch_s, 0.5, 3.0, 4.0, 6.0, 1.0, True), **fields
    )


def case(*measurements: Measurement, limit_s: float | None = 300, asked: int | None = None, **fields) -> Case:
    """Ten epochs, never scored on the way."""
    return replace(
        Case("local", "prefer", limit_s, asked, 10.0, 0, 1, 512, (offer(),), None, "", measurements, TIMEOUTS), **fields
    )


SCALES = (measured(1, 50), measured(2, 27), measured(4, 15))
"""510 s on one machine, 280 on two, 160 on four."""


def test_one_machine_that_keeps_the_limit_is_not_made_two():
    found = choose(case(*SCALES, limit_s=600))
    assert (found.verdict, found.nodes, found.type) == ("chosen", 1, "small")
    assert found.option.run_s == pytest.approx(510)
    assert found.option.cost == money.cost("1.00", 514_000_000)
    assert "2 × small would take about 4m40s and cost" in found.why
    assert "4 × small would take about 2m40s" in found.why or "8 × small" in found.why


def test_the_cheapest_that_keeps_the_limit_with_its_margin_is_chosen():
    assert choose(case(*SCALES, limit_s=561)).nodes == 1
    assert choose(case(*SCALES, limit_s=559)).nodes == 2  # one machine is expected in 510 s: less than ten per cent
    tight = choose(case(*SCALES, limit_s=300))
    assert tight.nodes == 3
    assert tight.option.basis == "interpolated"
    assert choose(case(*SCALES, limit_s=180)).nodes == 4


def test_of_equal_cost_the_faster():
    linear = [measured(1, 40, start_s=0.0, end_s=0.0, boot_s=0.0, leave_s=0.0)]
    linear += [measured(2, 20, start_s=0.0, end_s=0.0, boot_s=0.0, leave_s=0.0)]
    found = choose(case(*linear, limit_s=4000))
    assert found.option.cost == found.options[0].cost
    assert found.nodes == max(one.nodes for one in found.options if one.cost == found.options[0].cost)


def test_a_dearer_type_is_chosen_where_it_is_cheaper_in_the_end_or_alone_in_time():
    both = (*SCALES, measured(1, 10, "big"))
    dear = (offer(), offer("big", "6.00"))
    assert choose(case(*both, limit_s=600, offers=dear)).type == "small"
    fast = choose(case(*both, limit_s=130, offers=dear))
    assert (fast.type, fast.nodes) == ("big", 1)
    assert choose(case(*both, limit_s=600, offers=(offer(), offer("big", "4.00")))).type == "big"
    assert "1 × big would take about 1m50s and cost" in choose(case(*both, limit_s=600, offers=dear)).why


def test_a_type_that_was_never_measured_is_not_chosen_and_said():
    found = choose(case(*SCALES, limit_s=600, offers=(offer(), offer("new", "0.01"))))
    assert found.type == "small"
    assert "new has not been measured" in found.why


def test_flat_scaling_buys_one_machine_and_says_that_more_are_no_faster():
    found = choose(case(measured(1, 20), measured(2, 20), measured(4, 20), limit_s=300))
    assert found.nodes == 1
    assert "2 × small would take about 3m30s, no less: machines don't share 100% of its epochs" in found.why


def test_more_machines_that_are_slower_are_never_chosen():
    found = choose(case(measured(1, 20), measured(2, 30), limit_s=280))
    assert (found.verdict, found.nodes) == ("chosen", 1)
    assert "no less" in found.why


def test_a_limit_that_nothing_keeps_is_refused_with_the_fastest_and_what_would_do():
    found = choose(case(*SCALES, limit_s=60))
    assert found.verdict == "impossible"
    assert found.option.nodes == max(one.nodes for one in found.options)
    assert f"limits.time={sizing.duration(found.enough_s)} would be enough" in found.text
    again = choose(case(*SCALES, limit_s=found.enough_s))
    assert (again.verdict, again.nodes) == ("chosen", found.option.nodes)
    assert choose(case(*SCALES, limit_s=found.enough_s - 1)).verdict == "impossible"


def test_no_more_machines_than_the_provider_has():
    found = choose(case(*SCALES, limit_s=320, offers=(offer(slots=2),)))
    assert found.nodes == 2
    assert "3 × small would take about 3m20s (interpolated), but local has 2 machines in all" in found.why
    assert choose(case(*SCALES, limit_s=180, offers=(offer(slots=2),))).verdict == "impossible"
    at_the_end = choose(case(measured(1, 20), measured(2, 15), limit_s=200, offers=(offer(slots=2),)))
    assert at_the_end.nodes == 2
    assert "local has 2 machines in all" in at_the_end.why


def test_no_more_money_than_is_left():
    rich = choose(case(*SCALES, limit_s=320))
    poor = choose(case(*SCALES, limit_s=600, left=rich.option.need - 1, payer="team vision"))
    assert poor.nodes == 1
    assert "is left of team vision" in poor.why
    broke = choose(case(*SCALES, limit_s=320, left=rich.option.need - 1, payer="team vision"))
    assert broke.verdict == "impossible"
    assert "2 × small would take about 4m40s, but need $" in broke.why
    alone = choose(case(measured(1, 20), left=1, payer="limits.cost"))
    assert "1 × small would take about 3m30s, but need $" in alone.text


def test_a_short_run_needs_no_more_than_its_first_hold():
    found = choose(case(measured(1, 1), limit_s=60))
    assert found.option.need == money.cost_ceiling("2.00", TIMEOUTS.funding_lease + TIMEOUTS.drain)


def test_a_batch_is_shared_by_no_more_processes_than_it_has_pictures():
    found = choose(case(*SCALES, limit_s=600, batch=4, processes=2))
    assert {one.nodes for one in found.options if one.obstacle == "batch"} == set(range(3, 9))
    assert "a batch of 4 can't be shared by 6 processes" in found.why


def test_the_users_count_stands_and_is_only_judged():
    good = choose(case(*SCALES, limit_s=600, asked=2))
    assert (good.verdict, good.nodes, good.enough_s) == ("asked", 2, None)
    late = choose(case(*SCALES, limit_s=200, asked=2))
    assert (late.verdict, late.nodes, late.enough_s) == ("asked", 2, 308)
    assert "5m08s would be enough" in late.text
    unknown = choose(case(*SCALES, limit_s=200, asked=64))
    assert (unknown.verdict, unknown.nodes, unknown.option) == ("unmeasured", 64, None)
    assert "Nothing is known of it on 64 machines, only on 1 to 8" in unknown.text


def test_without_a_limit_one_machine_is_judged_beside_what_more_would_do():
    found = choose(case(*SCALES, limit_s=None))
    assert (found.verdict, found.nodes) == ("asked", 1)
    assert "2 × small would take" in found.why


def test_one_measurement_says_nothing_of_other_counts():
    found = choose(case(measured(2, 20), limit_s=300))
    assert [one.nodes for one in found.options] == [2]
    assert "more than 2 small have not been measured" in found.why
    assert choose(case(measured(2, 20), limit_s=60)).verdict == "impossible"
    assert choose(case(measured(2, 20), limit_s=300, asked=1)).verdict == "unmeasured"


def test_nothing_measured_is_said_and_the_job_runs_as_asked():
    found = choose(case())
    assert (found.verdict, found.nodes, found.type, found.options) == ("unmeasured", 1, None, ())
    assert "Nothing like it has been measured" in found.text
    assert "is stopped after 5m" in found.text
    assert choose(case(asked=3)).nodes == 3
    other = choose(case(measured(1, 20, "gone")))
    assert other.verdict == "unmeasured"


def test_a_start_that_is_most_of_the_time_is_said():
    found = choose(case(measured(1, 1), measured(2, 0.9), limit_s=60))
    assert "10s of it are its start and its end" in found.why


def test_scoring_between_counts_by_how_often_it_is_done():
    (one,) = choose(case(measured(1, 20, evaluation_s=3.0), evaluations=9)).options
    assert one.run_s == pytest.approx(4 + 6 + 200 + 27)
    assert choose(case(measured(1, 20, evaluation_s=None), evaluations=9)).verdict == "unmeasured"


def test_an_end_that_was_never_seen_makes_it_an_estimate():
    (one,) = choose(case(measured(1, 20, end_s=None, leave_s=None))).options
    assert one.basis == "estimated"
    assert one.sure_s == pytest.approx(one.run_s * (1 + MARGINS["estimated"]))


def test_the_margin_covers_the_slowest_of_the_newest_runs():
    slow, usual = measured(1, 30), measured(1, 20)
    (one,) = choose(case(usual, slow, usual)).options
    assert one.sure_s == pytest.approx(one.run_s * 1.5)
    (forgotten,) = choose(case(*[usual] * 5, slow)).options
    assert forgotten.sure_s == pytest.approx(forgotten.run_s * 1.1)


def test_the_choice_can_be_worked_out_again_from_what_is_stored_with_it():
    for limit_s, asked in itertools.product((None, 60, 320, 600), (None, 2, 9)):
        found = case(*SCALES, limit_s=limit_s, asked=asked, left=10**6, payer="limits.cost")
        choice = choose(found)
        again = Case.from_json(json.loads(json.dumps(found.as_json())))
        assert choose(again) == choice == Choice.from_json(json.loads(json.dumps(choice.as_json())))


@pytest.mark.parametrize(("own", "shared", "exchange"), [(2, 40, 0), (0, 40, 1), (3, 30, 0.5), (5, 0, 0), (1, 20, 2)])
def test_the_model_finds_the_terms_that_made_the_times(own, shared, exchange):
    found = fit({n: own + shared / n + exchange * (n - 1) for n in (1, 2, 4, 8)})
    assert (found.own, found.shared, found.exchange) == pytest.approx((own, shared, exchange), abs=1e-6)


def test_two_counts_promise_no_more_than_the_worst_that_would_explain_them():
    seconds = Scaling([measured(1, 40), measured(2, 30)])
    at_four = seconds.estimate(4, 1, 0)
    assert at_four.basis == "estimated"
    assert at_four.run_s - at_four.fixed_s == pytest.approx(40 / 4 + 3 * 10)  # not 25, as without any exchange


def test_times_are_interpolated_between_what_was_measured():
    scaling = Scaling(SCALES)
    assert scaling.counts == list(range(1, 9))
    assert scaling.estimate(2, 1, 0).run_s == pytest.approx(10 + 27)  # measured: as it was, not as the model has it
    assert 15 < scaling.estimate(3, 1, 0).run_s - 10 < 27


times = st.floats(0.01, 1000)
runs = st.lists(st.builds(measured, st.integers(1, 16), times, st.sampled_from(["small", "big"])), max_size=8)


@given(
    runs, st.floats(1, 20_000), st.floats(1, 20_000), st.integers(1, 10), st.integers(0, 3_000_000),
    st.decimals("0.01", "9.99", places=2), st.integers(0, 20),
)  # fmt: skip
def test_the_chosen_is_the_cheapest_that_keeps_the_limit_and_more_time_never_costs_more(
    found, limit_s, more_s, slots, left, price, evaluations
):
    offers = (offer(slots=slots), offer("big", str(price), slots))
    asked = case(*found, limit_s=limit_s, offers=offers, left=left, payer="team a", evaluations=evaluations)
    choice = choose(asked)
    fitting = [one for one in choice.options if one.sure_s <= limit_s and one.nodes <= slots and one.need <= left]
    assert (choice.verdict == "chosen") == bool(fitting)
    if fitting:
        assert choice.option.cost == min(one.cost for one in fitting)
        assert choice.option in fitting
        later = choose(replace(asked, limit_s=limit_s + more_s))
        assert later.option.cost <= choice.option.cost
    elif choice.enough_s is not None:
        assert choose(replace(asked, limit_s=choice.enough_s)).verdict == "chosen"
    assert all(type(one.cost) is int and one.sure_s >= one.run_s > 0 for one in choice.options)


def test_jobs_that_differ_in_how_long_alone_do_the_same_work():
    def work(**tree):
        return sizing.work(spec.parse({"recipe": "digits/quickstart"} | tree))

    usual = work()
    assert usual == work(params={"epochs": 3, "lr": 0.5, "seed": 7, "eval_every_epochs": 2}, resources={"nodes": 4})
    assert usual != work(params={"width": 8})
    assert usual != work(params={"batch_size": 64})
    assert usual != work(resources={"procs": 2})
    assert usual != work(params={"precision": "fp32"})


@pytest.mark.parametrize(("epochs", "every", "expected"), [(60, 1, 59), (4, 4, 0), (5, 4, 1), (9.9, 1, 9), (1, 1, 0)])
def test_how_often_a_run_is_scored_before_its_end(epochs, every, expected):
    recipe = "digits/quickstart" if epochs == int(epochs) else "cifar10/airbench94"
    data = {} if epochs == int(epochs) else {"data": {"train": "/cifar"}}
    parsed = spec.parse({"recipe": recipe, "params": {"epochs": epochs, "eval_every_epochs": every}} | data)
    assert sizing.evaluations(parsed) == expected


def test_the_smallest_batch_of_a_schedule_counts():
    parsed = spec.parse({"recipe": "imagenet/imagenet18", "data": {"train": "/imagenet"}})
    assert sizing.smallest_batch(parsed) == 1024
    assert sizing.has_phases(parsed)


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.44, "8.4s"), (42.2, "42s"), (130, "2m10s"), (300, "5m"), (3900, "1h05m"), (59.9, "1m")]
)
def test_durations_are_said_as_limits_time_is_written(seconds, text):
    assert sizing.duration(seconds) == text
    assert abs(spec.parse({"recipe": "digits/quickstart", "limits": {"time": text}}).limits.time - seconds) < 1

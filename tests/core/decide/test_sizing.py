# SPDX-License-Identifier: Apache-2.0
"""Which machines finish a job in time at the lowest cost, decided from values alone."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoestring_core import money, spec, wording
from shoestring_core.decide import workload
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.scaling import MARGINS, Measurement, ScalingModel, fit_epoch_times
from shoestring_core.decide.sizing import SizingInputs, SizingRecord, choose_machines
from shoestring_core.decide.sizing_reasons import explain
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.durations import format_duration

TIMEOUTS = Timeouts(funding_lease=60 * S)


def offer(type_: str = "small", price: str = "1.00", slots: int | None = 8, market: str = "spot") -> Offer:
    return Offer("local", "local", "", type_, market, price, "2.00", slots, "test", True)


def measured(nodes: int, epoch_s: float, type_: str = "small", **fields) -> Measurement:
    """A complete run of ten epochs with a startup of 4 s and a finish of 6 s."""
    return replace(
        Measurement(UUID(int=nodes), 1, type_, nodes, 10.0, epoch_s, 0.5, 3.0, 4.0, 6.0, 1.0, True), **fields
    )


def inputs(
    *measurements: Measurement, time_limit_s: float | None = 300, requested_nodes: int | None = None, **fields
) -> SizingInputs:
    """Ten epochs, without an evaluation before the end."""
    given = SizingInputs(
        Requirements(),
        time_limit_s,
        requested_nodes,
        10.0,
        0,
        1,
        512,
        (offer(),),
        None,
        "",
        measurements,
        {"local": TIMEOUTS},
    )
    return replace(given, **fields)


def choose(given: SizingInputs) -> SimpleNamespace:
    """The choice, with its sentences."""
    choice = choose_machines(given)
    reason = explain(given, choice)
    summary, why = (wording.sentence(part) if part else "" for part in (reason.summary, reason.why_not_faster))
    return SimpleNamespace(**vars(choice), summary=summary, why_not_faster=why)


SCALES = (measured(1, 50), measured(2, 27), measured(4, 15))
"""510 s on one machine, 280 on two, 160 on four."""


def test_no_second_machine_is_chosen_when_one_meets_the_limit():
    found = choose(inputs(*SCALES, time_limit_s=600))
    assert (found.outcome, found.nodes, found.type) == ("chosen", 1, "small")
    assert found.option.run_s == pytest.approx(510)
    assert found.option.cost == money.cost("1.00", 514_000_000)
    assert "2 × small would take about 4m40s and cost" in found.why_not_faster
    assert "4 × small would take about 2m40s" in found.why_not_faster or "8 × small" in found.why_not_faster


def test_the_cheapest_option_that_meets_the_limit_with_its_margin_is_chosen():
    assert choose(inputs(*SCALES, time_limit_s=561)).nodes == 1
    assert (
        choose(inputs(*SCALES, time_limit_s=559)).nodes == 2
    )  # one machine is expected in 510 s: less than ten per cent
    tight = choose(inputs(*SCALES, time_limit_s=300))
    assert tight.nodes == 3
    assert tight.option.basis == "interpolated"
    assert choose(inputs(*SCALES, time_limit_s=180)).nodes == 4


def test_of_options_of_equal_cost_the_fastest_is_chosen():
    linear = [measured(1, 40, startup_s=0.0, finish_s=0.0, boot_s=0.0, teardown_s=0.0)]
    linear += [measured(2, 20, startup_s=0.0, finish_s=0.0, boot_s=0.0, teardown_s=0.0)]
    found = choose(inputs(*linear, time_limit_s=4000))
    assert found.option.cost == found.options[0].cost
    assert found.nodes == max(one.nodes for one in found.options if one.cost == found.options[0].cost)


def test_a_more_expensive_type_is_chosen_if_it_is_cheaper_in_total_or_the_only_one_in_time():
    both = (*SCALES, measured(1, 10, "big"))
    dear = (offer(), offer("big", "6.00"))
    assert choose(inputs(*both, time_limit_s=600, offers=dear)).type == "small"
    fast = choose(inputs(*both, time_limit_s=130, offers=dear))
    assert (fast.type, fast.nodes) == ("big", 1)
    assert choose(inputs(*both, time_limit_s=600, offers=(offer(), offer("big", "4.00")))).type == "big"
    assert (
        "1 × big would take about 1m50s and cost" in choose(inputs(*both, time_limit_s=600, offers=dear)).why_not_faster
    )


def test_an_unmeasured_type_is_not_chosen_but_mentioned():
    found = choose(inputs(*SCALES, time_limit_s=600, offers=(offer(), offer("new", "0.01"))))
    assert found.type == "small"
    assert "new has not been measured" in found.why_not_faster


def test_without_speedup_one_machine_is_chosen_and_the_reason_given():
    found = choose(inputs(measured(1, 20), measured(2, 20), measured(4, 20), time_limit_s=300))
    assert found.nodes == 1
    assert "2 × small would take about 3m30s, not less: 100 % of epoch time doesn't parallelize" in found.why_not_faster


def test_more_but_slower_machines_are_never_chosen():
    found = choose(inputs(measured(1, 20), measured(2, 30), time_limit_s=280))
    assert (found.outcome, found.nodes) == ("chosen", 1)
    assert "not less" in found.why_not_faster


def test_an_infeasible_limit_names_the_fastest_option_and_a_sufficient_limit():
    found = choose(inputs(*SCALES, time_limit_s=60))
    assert found.outcome == "infeasible"
    assert found.option.nodes == max(one.nodes for one in found.options)
    assert f"limits.time={format_duration(found.sufficient_time_limit_s)} would be enough" in found.summary
    again = choose(inputs(*SCALES, time_limit_s=found.sufficient_time_limit_s))
    assert (again.outcome, again.nodes) == ("chosen", found.option.nodes)
    assert choose(inputs(*SCALES, time_limit_s=found.sufficient_time_limit_s - 1)).outcome == "infeasible"


def test_never_more_machines_than_the_provider_has():
    found = choose(inputs(*SCALES, time_limit_s=320, offers=(offer(slots=2),)))
    assert found.nodes == 2
    assert "3 × small would take about 3m20s (interpolated), but local has 2 machines in all" in found.why_not_faster
    assert choose(inputs(*SCALES, time_limit_s=180, offers=(offer(slots=2),))).outcome == "infeasible"
    at_the_end = choose(inputs(measured(1, 20), measured(2, 15), time_limit_s=200, offers=(offer(slots=2),)))
    assert at_the_end.nodes == 2
    assert "local has 2 machines in all" in at_the_end.why_not_faster


def test_never_more_money_than_the_budget_has_left():
    rich = choose(inputs(*SCALES, time_limit_s=320))
    poor = choose(
        inputs(*SCALES, time_limit_s=600, budget_left=rich.option.budget_needed - 1, budget_name="team vision")
    )
    assert poor.nodes == 1
    assert "is left of team vision" in poor.why_not_faster
    broke = choose(
        inputs(*SCALES, time_limit_s=320, budget_left=rich.option.budget_needed - 1, budget_name="team vision")
    )
    assert broke.outcome == "infeasible"
    assert "2 × small would take about 4m40s, but need $" in broke.why_not_faster
    alone = choose(inputs(measured(1, 20), budget_left=1, budget_name="limits.cost"))
    assert "1 × small would take about 3m30s, but need $" in alone.summary


def test_a_short_run_needs_only_its_initial_hold():
    found = choose(inputs(measured(1, 1), time_limit_s=60))
    assert found.option.budget_needed == money.cost_ceiling("2.00", TIMEOUTS.funding_lease + TIMEOUTS.drain)


def test_a_batch_is_split_over_no_more_processes_than_it_has_samples():
    found = choose(inputs(*SCALES, time_limit_s=600, min_batch=4, processes=2))
    assert {one.nodes for one in found.options if one.infeasible_reason == "batch"} == set(range(3, 9))
    assert "a batch of 4 can't be split over 6 processes" in found.why_not_faster


def test_a_requested_node_count_is_kept_and_only_predicted():
    good = choose(inputs(*SCALES, time_limit_s=600, requested_nodes=2))
    assert (good.outcome, good.nodes, good.sufficient_time_limit_s) == ("requested", 2, None)
    late = choose(inputs(*SCALES, time_limit_s=200, requested_nodes=2))
    assert (late.outcome, late.nodes, late.sufficient_time_limit_s) == ("requested", 2, 308)
    assert "5m08s would be enough" in late.summary
    unknown = choose(inputs(*SCALES, time_limit_s=200, requested_nodes=64))
    assert (unknown.outcome, unknown.nodes, unknown.option) == ("unmeasured", 64, None)
    assert "There is no measurement for 64 machines, only for 1 to 8" in unknown.summary


def test_without_a_limit_one_machine_is_predicted_and_compared_with_more():
    found = choose(inputs(*SCALES, time_limit_s=None))
    assert (found.outcome, found.nodes) == ("requested", 1)
    assert "2 × small would take" in found.why_not_faster


def test_one_measured_count_gives_no_estimate_for_others():
    found = choose(inputs(measured(2, 20), time_limit_s=300))
    assert [one.nodes for one in found.options] == [2]
    assert "More than 2 small have not been measured" in found.why_not_faster
    assert choose(inputs(measured(2, 20), time_limit_s=60)).outcome == "infeasible"
    assert choose(inputs(measured(2, 20), time_limit_s=300, requested_nodes=1)).outcome == "unmeasured"


def test_without_measurements_the_job_runs_as_requested():
    found = choose(inputs())
    assert (found.outcome, found.nodes, found.type, found.options) == ("unmeasured", 1, None, ())
    assert "No similar run has been measured" in found.summary
    assert "is stopped after 5m" in found.summary
    assert choose(inputs(requested_nodes=3)).nodes == 3
    other = choose(inputs(measured(1, 20, "gone")))
    assert other.outcome == "unmeasured"


def test_a_run_that_is_mostly_startup_says_so():
    found = choose(inputs(measured(1, 1), measured(2, 0.9), time_limit_s=60))
    assert "10s of it are startup and finish" in found.why_not_faster


def test_each_evaluation_before_the_end_adds_its_time():
    (one,) = choose(inputs(measured(1, 20, evaluation_s=3.0), evaluations=9)).options
    assert one.run_s == pytest.approx(4 + 6 + 200 + 27)
    assert choose(inputs(measured(1, 20, evaluation_s=None), evaluations=9)).outcome == "unmeasured"


def test_without_a_measured_finish_the_basis_is_estimated():
    (one,) = choose(inputs(measured(1, 20, finish_s=None, teardown_s=None))).options
    assert one.basis == "estimated"
    assert one.run_upper_s == pytest.approx(one.run_s * (1 + MARGINS["estimated"]))


def test_the_margin_covers_the_slowest_of_the_newest_runs():
    slow, usual = measured(1, 30), measured(1, 20)
    (one,) = choose(inputs(usual, slow, usual)).options
    assert one.run_upper_s == pytest.approx(one.run_s * 1.5)
    (forgotten,) = choose(inputs(*[usual] * 5, slow)).options
    assert forgotten.run_upper_s == pytest.approx(forgotten.run_s * 1.1)


def test_the_choice_can_be_recomputed_from_its_stored_inputs():
    for time_limit_s, requested in itertools.product((None, 60, 320, 600), (None, 2, 9)):
        given = inputs(
            *SCALES, time_limit_s=time_limit_s, requested_nodes=requested, budget_left=10**6, budget_name="limits.cost"
        )
        choice = choose_machines(given)
        record = SizingRecord(given, choice, explain(given, choice))
        again = SizingRecord.from_json(json.loads(json.dumps(record.as_json())))
        assert again == record
        assert choose_machines(again.inputs) == choice


@pytest.mark.parametrize(
    ("serial", "parallel", "communication"), [(2, 40, 0), (0, 40, 1), (3, 30, 0.5), (5, 0, 0), (1, 20, 2)]
)
def test_the_model_recovers_the_terms_that_generated_the_times(serial, parallel, communication):
    found = fit_epoch_times({n: serial + parallel / n + communication * (n - 1) for n in (1, 2, 4, 8)})
    assert (found.serial, found.parallel, found.communication) == pytest.approx(
        (serial, parallel, communication), abs=1e-6
    )


def test_two_measured_counts_are_extrapolated_with_the_least_possible_speedup():
    seconds = ScalingModel([measured(1, 40), measured(2, 30)])
    at_four = seconds.estimate(4, 1, 0)
    assert at_four.basis == "estimated"
    assert at_four.run_s - at_four.fixed_s == pytest.approx(40 / 4 + 3 * 10)  # not 25, as without any communication


def test_times_are_interpolated_between_measured_counts():
    scaling = ScalingModel(SCALES)
    assert scaling.node_counts == list(range(1, 9))
    assert scaling.estimate(2, 1, 0).run_s == pytest.approx(10 + 27)  # measured: as it was, not as the model has it
    assert 15 < scaling.estimate(3, 1, 0).run_s - 10 < 27


times = st.floats(0.01, 1000)
runs = st.lists(st.builds(measured, st.integers(1, 16), times, st.sampled_from(["small", "big"])), max_size=8)


@given(
    runs, st.floats(1, 20_000), st.floats(1, 20_000), st.integers(1, 10), st.integers(0, 3_000_000),
    st.decimals("0.01", "9.99", places=2), st.integers(0, 20),
)  # fmt: skip
def test_the_choice_is_the_cheapest_option_in_time_and_a_longer_limit_never_costs_more(
    found, limit_s, more_s, slots, left, price, evaluations
):
    offers = (offer(slots=slots), offer("big", str(price), slots))
    given = inputs(
        *found, time_limit_s=limit_s, offers=offers, budget_left=left, budget_name="team a", evaluations=evaluations
    )
    choice = choose(given)
    fitting = [
        one for one in choice.options if one.run_upper_s <= limit_s and one.nodes <= slots and one.budget_needed <= left
    ]
    assert (choice.outcome == "chosen") == bool(fitting)
    if fitting:
        assert choice.option.cost == min(one.cost for one in fitting)
        assert choice.option in fitting
        later = choose(replace(given, time_limit_s=limit_s + more_s))
        assert later.option.cost <= choice.option.cost
    elif choice.sufficient_time_limit_s is not None:
        assert choose(replace(given, time_limit_s=choice.sufficient_time_limit_s)).outcome == "chosen"
    assert all(type(one.cost) is int and one.run_upper_s >= one.run_s > 0 for one in choice.options)


def test_jobs_that_differ_only_in_length_have_the_same_fingerprint():
    def work(**tree):
        return workload.fingerprint(spec.parse({"recipe": "digits/quickstart"} | tree))

    usual = work()
    assert usual == work(params={"epochs": 3, "lr": 0.5, "seed": 7, "eval_every_epochs": 2}, resources={"nodes": 4})
    assert usual != work(params={"width": 8})
    assert usual != work(params={"batch_size": 64})
    assert usual != work(resources={"procs": 2})
    assert usual != work(params={"precision": "fp32"})


@pytest.mark.parametrize(("epochs", "every", "expected"), [(60, 1, 59), (4, 4, 0), (5, 4, 1), (9.9, 1, 9), (1, 1, 0)])
def test_how_often_a_run_is_evaluated_before_its_end(epochs, every, expected):
    recipe = "digits/quickstart" if epochs == int(epochs) else "cifar10/airbench94"
    data = {} if epochs == int(epochs) else {"data": {"train": "/cifar"}}
    parsed = spec.parse({"recipe": recipe, "params": {"epochs": epochs, "eval_every_epochs": every}} | data)
    assert workload.evaluations(parsed) == expected


def test_the_smallest_batch_of_a_schedule_counts():
    tree = {"recipe": "imagenet/imagenet18", "data": {"train": "/imagenet"}}
    parsed = spec.parse(tree)
    assert workload.min_batch(parsed) == 1024
    assert workload.has_phases(parsed)
    quartered = spec.parse(tree | {"params": {"batch_size_schedule": "0:1 1/2:1/4"}})
    assert workload.min_batch(quartered) == parsed.params["batch_size"] // 4

# SPDX-License-Identifier: Apache-2.0
"""Spot policies under a deadline: never late whatever happens, exact costs where they can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoestring_core.decide.spot.availability import PRIOR_UPTIME_H, AvailabilityHistory
from shoestring_core.decide.spot.deadline_job import Bools, DeadlineJob, Mode, RunStates, keep_deadline
from shoestring_core.decide.spot.policies import POLICIES, Adaptive, Policy, Situation, UniformProgress
from shoestring_core.decide.spot.simulation import Outcome, simulate
from shoestring_core.decide.spot.value_table import Availability, solve

JOB = DeadlineJob(work=8, deadline=12, changeover=0.2, price_ratio=3, interval=0.25)


def availability(job: DeadlineJob, pattern: Callable[[int], bool], zones: int = 1) -> Bools:
    series = np.array([pattern(interval) for interval in range(job.intervals)])
    return np.repeat(series[None, :, None], zones, axis=2)


def random_availability(job: DeadlineJob, runs: int, zones: int, uptime: float, outage: float, seed: int) -> Bools:
    """Markov series, independent in each zone."""
    rng = np.random.default_rng(seed)
    series = np.zeros((runs, job.intervals, zones), bool)
    now = rng.random((runs, zones)) < uptime / (uptime + outage)
    for interval in range(job.intervals):
        series[:, interval] = now
        ends = rng.random((runs, zones)) < 1 - np.exp(-job.interval / np.where(now, uptime, outage))
        now = now ^ ends
    return series


class Wants:
    """A policy that wants what it was made with, interval by interval."""

    def __init__(self, modes: list[int]) -> None:
        self._modes = iter(modes)

    def choose(self, now: Situation) -> np.ndarray:
        wanted = np.full(len(now.spot_available), next(self._modes))
        return np.where((wanted == Mode.SPOT) & ~now.spot_available, Mode.WAITING, wanted)


@given(
    modes=st.lists(st.sampled_from([0, 1, 2]), min_size=48, max_size=48),
    up=st.lists(st.booleans(), min_size=48, max_size=48),
    work=st.floats(0.05, 11.5),
    changeover=st.sampled_from([0.0, 0.05, 0.2, 0.25, 0.4]),
)
@settings(max_examples=80, deadline=None)
def test_no_run_is_late_whatever_a_policy_wants_and_whatever_is_lost(
    modes: list[int], up: list[bool], work: float, changeover: float
) -> None:
    job = DeadlineJob(work, 12, changeover, 3, 0.25)
    outcome = simulate(job, Wants(modes), np.array(up)[None, :, None])
    assert not outcome.missed.any()
    assert outcome.cost[0] <= (work + changeover * outcome.changeovers[0]) / work + 1e-9


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("changeover", [0.0, 0.2, 0.4])
def test_no_run_is_late_whenever_spot_ends_or_begins(name: str, changeover: float) -> None:
    job = DeadlineJob(8, 12, changeover, 3, 0.25)
    intervals, change_at = np.arange(job.intervals)[None, :, None], np.arange(job.intervals + 1)[:, None, None]
    for series in (intervals < change_at, intervals >= change_at, intervals == change_at):
        assert not simulate(job, POLICIES[name](), series).missed.any()


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    "pattern",
    [
        lambda _: False,
        lambda _: True,
        lambda i: i % 2 == 0,
        lambda i: i < 20,
        lambda i: i >= 20,
        lambda i: i % 16 < 4,
        lambda i: i % 8 != 7 if i < 24 else i % 4 == 0,
    ],
    ids=["never", "always", "flapping", "until-5h", "from-5h", "short", "two-regimes"],
)
def test_each_policy_is_in_time_on_odd_series(name: str, pattern: Callable[[int], bool]) -> None:
    for deadline in (8.5, 12.0, 48.0):
        job = DeadlineJob(8, deadline, 0.2, 3, 0.25)
        outcome = simulate(job, POLICIES[name](), availability(job, pattern))
        assert not outcome.missed.any()


@pytest.mark.parametrize("name", POLICIES)
def test_where_spot_is_always_there_a_run_pays_the_spot_price_and_one_changeover(name: str) -> None:
    outcome = simulate(JOB, POLICIES[name](), availability(JOB, lambda _: True))
    assert outcome.changeovers.tolist() == [1]
    assert outcome.cost[0] == pytest.approx((JOB.work + JOB.changeover) / (JOB.work * JOB.price_ratio))


@pytest.mark.parametrize("name", POLICIES)
def test_where_spot_is_never_there_a_run_pays_on_demand_and_one_changeover(name: str) -> None:
    outcome = simulate(JOB, POLICIES[name](), availability(JOB, lambda _: False))
    assert outcome.changeovers.tolist() == [1]
    assert outcome.cost[0] == pytest.approx((JOB.work + JOB.changeover) / JOB.work)


def test_a_loss_costs_a_changeover_and_the_last_interval_is_billed_until_the_work_is_done() -> None:
    # 4 h on spot, an hour without, then spot again: 8 h of work and two changeovers at the spot price
    outcome = simulate(JOB, POLICIES["greedy"](), availability(JOB, lambda i: not 16 <= i < 20))
    assert outcome.changeovers.tolist() == [2]
    assert outcome.cost[0] == pytest.approx((8 + 2 * 0.2) / (8 * 3))


def test_uniform_progress_goes_on_demand_when_behind_and_back_to_spot_once_ahead_enough() -> None:
    def modes(hysteresis: float) -> list[int]:
        policy, chosen = UniformProgress(hysteresis), []

        class Recorder:
            def choose(self, now: Situation) -> np.ndarray:
                chosen.append(int(policy.choose(now)[0]))
                return policy.choose(now)

        simulate(JOB, Recorder(), availability(JOB, lambda i: i >= 4))
        return chosen

    assert modes(2.0)[:2] == [Mode.WAITING, Mode.ON_DEMAND]  # at the start nothing is behind
    assert modes(float("-inf"))[4] == Mode.SPOT
    assert modes(2.0)[4] == Mode.ON_DEMAND


def test_the_safety_net_lets_a_run_stay_on_spot_as_long_as_losing_it_leaves_time_for_on_demand() -> None:
    states = RunStates(np.array([1, 1, 0]), np.zeros(3, int), np.array([2.0, 2.0, 2.0]), np.zeros(3))
    wanted = np.array([1, 0, 1])
    # left 2.2 h for 2 h of work and a changeover of 0.2 h: what is trained on spot in the interval makes up for it
    assert keep_deadline(JOB, states, wanted, 2.2).tolist() == [Mode.SPOT, Mode.SPOT, Mode.ON_DEMAND]
    assert keep_deadline(JOB, states, wanted, 2.1).tolist() == [Mode.ON_DEMAND] * 3
    assert keep_deadline(JOB, states, wanted, 3.0).tolist() == [1, 0, 1]


def test_estimates_begin_with_the_prior_and_follow_what_is_observed() -> None:
    seen = AvailabilityHistory(1, 2, 0.5)
    assert seen.uptimes().tolist() == [[PRIOR_UPTIME_H] * 2]
    for interval in range(400):
        seen.observe(np.array([[interval % 2 == 0, interval % 40 != 0]]))
    short, long = seen.uptimes()[0]
    assert short == pytest.approx(0.5, abs=0.1)
    assert 15 < long < 20
    assert seen.longest_lived_zones().tolist() == [1]
    assert seen.fallbacks()[0] == pytest.approx(0.5, abs=0.05)


def test_a_single_zone_has_no_fallback() -> None:
    assert AvailabilityHistory(3, 1, 0.5).fallbacks().tolist() == [0.0] * 3


def test_a_value_table_agrees_with_costs_known_in_closed_form() -> None:
    ever, never = Availability(*(np.array([value]) for value in (1e9, 1e9, 0.0))), 0
    table = solve(JOB, ever)
    slack, index = np.array([2.0]), np.array([never])
    assert table.read(index, 8.0, 1, Mode.SPOT, slack)[0] == pytest.approx(6.0, abs=0.05)
    assert table.read(index, 8.0, 1, Mode.WAITING, slack)[0] == pytest.approx(6.2, abs=0.05)
    assert table.read(index, 8.0, 0, Mode.ON_DEMAND, slack)[0] == pytest.approx(18.0, abs=0.1)
    assert table.read(index, 8.0, 0, Mode.WAITING, slack)[0] == pytest.approx(18.6, abs=0.3)
    assert table.read(index, 8.0, 1, Mode.SPOT, np.array([8.5]))[0] == 0.0


def costs(job: DeadlineJob, series: Bools, *policies: Policy) -> list[Outcome]:
    return [simulate(job, policy, series) for policy in policies]


@pytest.mark.parametrize(("uptime", "outage"), [(0.7, 0.7), (2.0, 1.0), (6.0, 1.0), (2.0, 6.0)])
def test_the_adaptive_policy_costs_no_more_than_the_best_fixed_hysteresis_on_markov_series(
    uptime: float, outage: float
) -> None:
    job = DeadlineJob(24, 32, 0.2, 3.14, 0.5)
    series = random_availability(job, 300, 1, uptime, outage, seed=5)
    eager, level, adaptive = costs(job, series, UniformProgress(float("-inf")), UniformProgress(0.0), Adaptive())
    assert not adaptive.missed.any()
    assert adaptive.cost.mean() <= min(eager.cost.mean(), level.cost.mean()) + 0.003


def test_several_zones_cost_less_than_any_of_them() -> None:
    job = DeadlineJob(12, 16, 0.2, 3.14, 0.5)
    series = random_availability(job, 40, 3, 2.0, 2.0, seed=6)
    together, *alone = costs(job, series, Adaptive()) + [costs(job, series[:, :, [z]], Adaptive())[0] for z in range(3)]
    assert together.cost.mean() < min(one.cost.mean() for one in alone) - 0.1


def test_a_warm_up_is_observed_and_nothing_else() -> None:
    series = random_availability(DeadlineJob(8, 24, 0.2, 3, 0.25), 5, 2, 2.0, 2.0, seed=7)
    warm_up = series.shape[1] - JOB.intervals
    one_zone = series[:, :, :1]
    cold = simulate(JOB, UniformProgress(), one_zone[:, warm_up:])
    warm = simulate(JOB, UniformProgress(), one_zone, warm_up)
    assert warm.cost.tolist() == cold.cost.tolist()  # it learns nothing from what it sees
    with pytest.raises(ValueError, match="availability of 96 intervals, where the job takes 48"):
        simulate(JOB, POLICIES["greedy"](), series)

# SPDX-License-Identifier: Apache-2.0
"""What-ifs, from values alone: the same schedule on the same clock, with something changed."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from shoestring_core.decide.deadlines import INTERVAL, DeadlineCase, DeadlinePlan, DeadlineTurn, Seen
from shoestring_core.decide.projection import SETTLING, project
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.what_ifs import AccountChange, Changes, JobChange, Moves, apply_changes, compare
from shoestring_core.spec.gpus import GpuChoice

from tests.core.decide.test_projection import DOLLAR, HOUR, hour, of, run, starts
from tests.core.decide.test_schedule import NOW, TEAM_A, TEAM_B, TIMEOUTS, offers, queued, snapshot


def job(number: int) -> UUID:
    return UUID(int=100 + number)


def projected(snap, runs, changes: Changes, slots: int = 1):
    changed, left, paused = apply_changes(snap, runs, changes, NOW)
    return project(changed, left, offers(slots), NOW, TIMEOUTS, hour), paused


def test_without_a_change_the_schedule_is_the_same():
    snap = snapshot(*(queued(number, queued_at=number) for number in range(1, 4)), machines_in_use=1)
    runs = [run(1, NOW + HOUR)]
    before = of(snap, *runs, slots=1)
    after, paused = projected(snap, runs, Changes())
    assert (after, paused) == (before, ())
    assert compare(before, after, paused, before.order) == Moves(0, 0, 0, 0, ())


def test_a_job_that_goes_first_moves_the_others_back():
    snap = snapshot(*(queued(number, queued_at=number) for number in range(1, 4)), machines_in_use=1)
    before = of(snap, run(1, NOW + HOUR), slots=1)
    after, _ = projected(snap, [run(1, NOW + HOUR)], Changes(jobs={job(3): JobChange(first=True)}))
    assert starts(after) == {3: 1.0, 1: 2.0, 2: 3.0}
    assert compare(before, after, (), before.order) == Moves(1, 2, 0, 0, ())


def test_a_job_that_leaves_the_queue_lets_others_start_earlier():
    snap = snapshot(*(queued(number, queued_at=number) for number in range(1, 4)), machines_in_use=1)
    before = of(snap, run(1, NOW + HOUR), slots=1)
    after, _ = projected(snap, [run(1, NOW + HOUR)], Changes(jobs={job(1): JobChange(stop=True)}))
    assert starts(after) == {2: 1.0, 3: 2.0}
    assert compare(before, after, (), before.order) == Moves(2, 0, 0, 1, ())


def test_a_job_that_takes_any_machine_starts_where_there_is_room():
    choosy = replace(queued(1), requirements=Requirements(1, "local", spot="only", type="big"))
    after, _ = projected(snapshot(choosy), [], Changes(jobs={job(1): JobChange(any_machine=True)}))
    assert starts(after) == {1: 0.0}
    assert starts(projected(snapshot(choosy), [], Changes())[0]) == {}


def test_a_higher_limit_lets_jobs_start_and_a_lower_one_holds_them_up():
    snap = snapshot(queued(1), limits={TEAM_A: 1})
    raised, _ = projected(snap, [], Changes(accounts={TEAM_A: AccountChange(DOLLAR, 1)}))
    assert starts(raised) == {1: 0.0}
    assert starts(projected(snap, [], Changes(accounts={TEAM_A: AccountChange(None, 1)}))[0]) == {1: 0.0}
    free = snapshot(queued(1))
    assert starts(projected(free, [], Changes(accounts={TEAM_A: AccountChange(1, 1)}))[0]) == {}


def test_a_limit_below_what_is_spent_and_held_pauses_what_it_pays_for_at_the_cost_of_the_hold():
    snap = snapshot(queued(1), queued(2, team=TEAM_B), machines_in_use=1)
    team = replace(snap.balances[TEAM_A], posted=DOLLAR, held=DOLLAR // 10)
    snap = replace(snap, balances=snap.balances | {TEAM_A: team})
    runs = [run(1, NOW + 5 * HOUR, held=DOLLAR // 10, cost=DOLLAR)]
    after, paused = projected(snap, runs, Changes(accounts={TEAM_A: AccountChange(DOLLAR, 1)}))
    assert paused == (runs[0].job,)
    assert starts(after) == {2: round(SETTLING / HOUR, 3)}  # the other team gets the machine
    assert after.points[-1].spent[TEAM_A] == DOLLAR + DOLLAR // 10


def test_a_greater_weight_gives_a_team_its_turn():
    snap = snapshot(queued(1, queued_at=1), queued(2, team=TEAM_B, queued_at=2), machines_in_use=1)
    used = {team: replace(snap.balances[team], recent=DOLLAR) for team in (TEAM_A, TEAM_B)}
    snap = replace(snap, balances=snap.balances | used)
    runs = [run(1, NOW + HOUR)]
    assert [one.int - 100 for one in projected(snap, runs, Changes())[0].order] == [1, 2]
    heavier = Changes(accounts={TEAM_B: AccountChange(None, 2)})
    assert [one.int - 100 for one in projected(snap, runs, heavier)[0].order] == [2, 1]


def test_a_job_on_other_gpus_starts_where_these_are():
    choosy = replace(queued(1), requirements=Requirements(1, "local", type="big"))
    wanted = Changes(jobs={job(1): JobChange(gpus=())})
    assert starts(projected(snapshot(choosy), [], Changes())[0]) == {}
    assert starts(projected(snapshot(choosy), [], wanted)[0]) == {1: 0.0}
    assert (
        starts(projected(snapshot(choosy), [], Changes(jobs={job(1): JobChange(gpus=(GpuChoice("H100"),))}))[0]) == {}
    )


def test_a_job_that_waits_for_spot_starts_on_demand_when_its_deadline_needs_it_and_later_with_a_later_one():
    plan = DeadlinePlan(NOW, NOW + 6 * HOUR, "local", "cpu", 1, HOUR, HOUR // 4, 0, 5 * DOLLAR, "measured")
    case = DeadlineCase(plan, NOW, "wait", "", HOUR, HOUR // 4, 0, Seen(), Seen(), 3.0, 0, 0, None, INTERVAL)
    waits = replace(queued(1), deadline=DeadlineTurn("wait", "", case, plan.worst_case))
    snap = snapshot(waits)

    def starts_at(change: JobChange) -> dict[int, tuple[float, str]]:
        changed, _, _ = apply_changes(snap, [], Changes(jobs={job(1): change}), NOW)
        found = project(changed, [], offers(1), NOW, TIMEOUTS, hour).starts.values()
        return {one.job.int - 100: ((one.at - NOW) / HOUR, one.offer.market) for one in found}

    assert starts_at(JobChange()) == {1: (4.5, "on_demand")}
    assert starts_at(JobChange(deadline=NOW + 8 * HOUR)) == {1: (6.5, "on_demand")}
    assert starts_at(JobChange(deadline=NOW + HOUR)) == {1: (0.0, "on_demand")}

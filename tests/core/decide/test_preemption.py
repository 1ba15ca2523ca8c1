# SPDX-License-Identifier: Apache-2.0
"""Guaranteed rates: who goes first, who gives back what it borrows, and that it never goes round in circles.

Some cases are those in which other schedulers failed; they are named by the issue that reports it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from shoestring_core.decide.preemption import MIN_RUN_TIME, Eviction
from shoestring_core.decide.start import Wait
from shoestring_core.wording import waits

from tests.core.decide.shared_machines import BOOT, SharedMachines, offer, play

LONG_ENOUGH = BOOT + MIN_RUN_TIME


def shared(slots: int = 4) -> SharedMachines:
    """Machines of $1 an hour."""
    return SharedMachines((offer(slots=slots),))


def train(world: SharedMachines) -> None:
    """All that can start does, and trains until it may be evicted."""
    world.settle()
    world.now += LONG_ENOUGH


def evicted(world: SharedMachines) -> list[Eviction]:
    return list(world.tick().evictions)


def test_a_team_below_its_guaranteed_rate_goes_before_those_that_used_less():
    world = shared(slots=1)
    b = world.team("b")
    a = world.team("a", guaranteed=1, recent=50)
    world.submit(b)
    first = world.submit(a)
    assert [start.job for start in world.tick().starts] == [first]


def test_beyond_its_guaranteed_rate_a_team_waits_for_its_turn_like_others_and_a_turn_may_change_with_a_start():
    world = shared(slots=2)
    b = world.team("b")
    a = world.team("a", guaranteed=1, recent=50)
    others = world.submit(b)
    own = [world.submit(a), world.submit(a)]
    assert [start.job for start in world.tick().starts] == [own[0], others]


def test_a_job_within_its_teams_guaranteed_rate_takes_back_what_another_team_borrows():
    world = shared()
    b = world.team("b")
    a = world.team("a", guaranteed=2)
    borrowed = [world.submit(b) for _ in range(4)]
    train(world)
    wanted = world.submit(a, nodes=2)
    evictions = evicted(world)
    assert {one.job for one in evictions} == set(borrowed[2:]), "the newest of the team, and no more than are needed"
    assert evictions[0].reason.text() == (
        "It makes room for a job of team a, which is guaranteed $2.00 an hour and used $0.00; team b used $4.00. "
        "It resumes from its checkpoint when machines are free."
    )
    assert world.tick().evictions == (), "their machines are about to be free"
    world.drain()
    decision = world.tick()
    assert [start.job for start in decision.starts] == [wanted]
    assert {wait.job for wait in decision.waits} == set(borrowed[2:])
    assert world.settle() == 0


def test_no_job_is_evicted_for_one_that_would_borrow():
    world = shared()
    b, a = world.team("b"), world.team("a", guaranteed=1)
    for _ in range(4):
        world.submit(b)
    train(world)
    world.submit(a, nodes=2)
    assert evicted(world) == []


def test_no_job_is_evicted_before_it_has_trained_for_long_enough():
    world = shared(slots=1)
    b, a = world.team("b"), world.team("a", guaranteed=1)
    world.submit(b)
    world.settle()
    world.submit(a)
    for _ in range(2):
        world.now += LONG_ENOUGH // 2 - 1
        assert evicted(world) == []
    world.now += 2
    assert len(evicted(world)) == 1


def test_the_team_that_borrows_most_for_its_weight_gives_first():
    world = shared(slots=6)
    little, much, heavy = world.team("little"), world.team("much"), world.team("heavy", weight=9)
    a = world.team("a", guaranteed=1)
    of_each = {team: [world.submit(team) for _ in range(n)] for team, n in ((little, 1), (much, 2), (heavy, 3))}
    train(world)
    world.submit(a)
    (eviction,) = evicted(world)
    assert eviction.job in of_each[much]


def test_one_gang_that_does_for_all_is_evicted_rather_than_it_and_smaller_jobs():
    world = shared(slots=4)
    b, a = world.team("b"), world.team("a", guaranteed=3)
    gang = world.submit(b, nodes=3)
    small = world.submit(b)
    train(world)
    world.submit(a, nodes=3)
    assert [one.job for one in evicted(world)] == [gang]
    assert small in world.running


def test_of_jobs_that_need_not_all_end_that_of_the_smaller_share_is_spared():
    """A gang does for all but one of the four: the team that borrows $1 at weight 1 gives it, not that at weight 2."""
    world = shared(slots=5)
    more, less, gang, a = world.team("b"), world.team("c", weight=2), world.team("d", weight=9), world.team("a", 4)
    gives, spared = world.submit(more), world.submit(less)
    gives_all = world.submit(gang, nodes=3)
    train(world)
    world.submit(a, nodes=4)
    assert {one.job for one in evicted(world)} == {gives, gives_all}
    assert spared in world.running


def test_room_that_cannot_be_made_whole_is_not_made_at_all():
    """Gangs run whole or not at all."""
    world = shared(slots=4)
    b, c, a = world.team("b", guaranteed=3), world.team("c"), world.team("a", guaranteed=2)
    for team, nodes in ((b, 3), (c, 1)):
        world.submit(team, nodes)
    train(world)
    world.submit(a, nodes=2)
    assert evicted(world) == []
    assert world.settle() == 0


def test_a_team_without_money_evicts_nobody():
    world = shared(slots=1)
    b, a = world.team("b"), world.team("a", guaranteed=1)
    world.submit(b)
    train(world)
    world.teams[a] = replace(world.teams[a], limit=1)
    world.submit(a)
    decision = world.tick()
    assert decision.evictions == ()
    assert [wait.reason for wait in decision.waits] == ["budget"]


def test_vcpus_of_a_quota_are_made_free_as_well_as_slots():
    world = SharedMachines((offer(slots=None, quota=8),))
    b, a = world.team("b"), world.team("a", guaranteed=1)
    for _ in range(2):
        world.submit(b)
    train(world)
    wanted = world.submit(a)
    assert len(evicted(world)) == 1
    world.drain()
    assert [start.job for start in world.tick().starts] == [wanted]


def test_a_job_that_waits_behind_a_team_below_its_guaranteed_rate_is_told_so():
    world = shared(slots=1)
    b, a = world.team("b"), world.team("a", guaranteed=2)
    world.submit(a)
    world.settle()
    world.submit(a)
    behind = world.submit(b)
    told = next(wait for wait in world.tick().waits if wait.job == behind)
    assert isinstance(told, Wait)
    assert told.detail == waits.MachinesInUse(1, 0, 1, True, waits.WithinGuaranteedRate("team a", "1.00", "2.00"))


# What other schedulers get wrong


def test_kueue_804_two_teams_that_take_back_at_once_do_not_get_the_same_machines():
    world = shared(slots=2)
    b, a, c = world.team("b"), world.team("a", guaranteed=1), world.team("c", guaranteed=1)
    for _ in range(2):
        world.submit(b)
    train(world)
    wanted = {world.submit(a), world.submit(c)}
    assert world.settle() == 2
    assert set(world.running) == wanted, "each has its own, and never are there more machines than slots"


def test_kueue_3779_an_evicted_job_does_not_take_its_place_back():
    """A and B are guaranteed $1.50 each, best-effort work nothing. A has run a job of $2.50 and best-effort work; a
    small job of A is to start."""
    world = SharedMachines((offer(slots=6, price="0.50"),))
    a, b, best_effort = world.team("a", guaranteed=1.5), world.team("b", guaranteed=1.5), world.team("best effort")
    large = world.submit(a, nodes=5)
    effort = world.submit(best_effort)
    train(world)
    world.submit(a)
    assert world.settle() == 0, "A borrows already"
    assert {large, effort} <= set(world.running)
    wanted = world.submit(b)
    assert world.settle() == 1
    assert wanted in world.running
    for _ in range(5):
        world.now += LONG_ENOUGH
        assert world.settle() == 0


def test_kueue_2821_two_teams_within_their_guaranteed_rates_never_evict_each_other():
    world = shared(slots=2)
    a, b = world.team("a", guaranteed=2), world.team("b", guaranteed=2)
    for _ in range(3):
        world.submit(a)
        world.submit(b)
    for _ in range(5):
        train(world)
        assert not world.evicted, "there is less than what is guaranteed: nobody borrows"


def test_kueue_7101_the_same_job_is_not_evicted_over_and_over():
    world = shared(slots=4)
    b, a = world.team("b"), world.team("a", guaranteed=2)
    for _ in range(4):
        world.submit(b)
    train(world)
    for _ in range(2):
        world.submit(a)
    for _ in range(40):
        world.settle()
        world.now += LONG_ENOUGH
    assert sum(world.evicted.values()) == 2


def test_kueue_6947_a_job_that_nobody_can_make_room_for_does_not_block_one_that_can_start():
    world = SharedMachines((offer(slots=2), offer("other", slots=2)))
    b, a = world.team("b", guaranteed=2), world.team("a", guaranteed=2)
    world.submit(b, nodes=2, provider="sim")
    train(world)
    blocked = world.submit(a, nodes=2, provider="sim")
    too_large = world.submit(a, nodes=9)
    feasible = world.submit(a, provider="other")
    assert [start.job for start in world.tick().starts] == [feasible]
    assert {blocked, too_large} == set(world.queue)


def test_kueue_12541_a_schedule_ends_whatever_guarantees_and_sizes_do_not_fit_together():
    world = SharedMachines((offer(slots=5, price="0.70"), offer("other", price="1.30", slots=3)))
    teams = [world.team(str(n), guaranteed=n * 0.9, weight=1 + n % 3) for n in range(6)]
    for number, team in enumerate(teams * 4):
        world.submit(team, nodes=1 + number % 3)
    for _ in range(10):
        world.settle()
        world.now += LONG_ENOUGH


def test_yunikorn_1988_no_job_is_taken_from_a_team_that_would_fall_below_its_guaranteed_rate():
    world = shared(slots=4)
    b, a = world.team("b", guaranteed=3), world.team("a", guaranteed=2)
    gang, single = world.submit(b, nodes=2), world.submit(b, nodes=2)
    train(world)
    world.submit(a, nodes=1)
    assert evicted(world) == [], "b has $4 of $3: without either job it would have $2"
    assert {gang, single} == set(world.running)


@pytest.mark.parametrize("part", range(3))
def test_of_random_events_none_leads_to_an_eviction_below_a_guaranteed_rate_or_without_end(seed: int, part: int):
    assert play(f"{seed}/{part}", 400)["settle"] > 10


def test_a_team_that_room_is_made_for_gives_up_nothing_in_the_same_schedule():
    """Of what it runs nothing is borrowed as long as what it is about to have doesn't run yet.

    These events lead to a schedule in which a team claims room on one provider, starts a job on the other, and would
    have lost a third to another team: it would have run at less than its guaranteed rate.
    """
    assert play("4/293", 200)["tick, with evictions for 1"] > 5

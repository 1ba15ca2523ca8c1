# SPDX-License-Identifier: Apache-2.0
"""Commitments: money that only one job's machines can be paid from, until the job gives it back."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from shoestring_core.errors import BudgetExceeded
from shoestring_core.store import ledger
from shoestring_core.store.tables import JobRow
from shoestring_core.wording.machines import LaunchNotNeeded

from tests.core.world import World


def commit(world: World, job: JobRow, amount: int) -> None:
    account = world.account("job", job).id
    world.store.write(lambda db: ledger.commit_money(db, account, amount))


def adjust(world: World, job: JobRow, amount: int) -> int:
    account = world.account("job", job).id
    return world.store.write(lambda db: ledger.adjust_commitment(db, account, amount))


def committed(world: World, job: JobRow) -> int:
    account = world.account("job", job).id
    with world.store.read() as db:
        return ledger.load_commitments(db, [account])[account]


def test_what_is_committed_is_held_pays_for_the_jobs_machines_alone_and_takes_back_what_they_leave(world: World):
    job, other = world.job(), world.job()
    world.limit("team", 100)
    commit(world, job, 80)
    assert [held for _, held, _ in world.totals(job)] == [80] * 4
    with pytest.raises(BudgetExceeded):
        world.hold(other, 21)
    machine = world.hold(job, 50)
    assert (committed(world, job), [held for _, held, _ in world.totals(job)]) == (30, [80] * 4)
    world.settle(machine, 35)
    assert (committed(world, job), world.totals(job)[2]) == (45, (35, 45, 0))
    last = world.hold(job, 60)  # 15 more than is committed, of the 20 that are free
    assert (committed(world, job), world.totals(job)[2]) == (0, (35, 60, 0))
    world.store.write(lambda db: ledger.release_hold(db, last, LaunchNotNeeded()))
    assert committed(world, job) == 60
    assert adjust(world, job, 66) == 60, "there is no more than 65"
    assert adjust(world, job, 65) == 65
    assert adjust(world, job, 0) == 0
    assert world.totals(job)[2] == (35, 0, 0)
    assert world.find_discrepancies() == []


@pytest.mark.any_database
def test_a_commitment_that_no_budget_has_is_refused_and_changes_nothing(world: World):
    job = world.job()
    world.limit("org", 10)
    with pytest.raises(BudgetExceeded) as refused:
        commit(world, job, 11)
    assert refused.value.fields["left"] == "0.00001"
    assert [held for _, held, _ in world.totals(job)] == [0] * 4
    assert world.find_discrepancies() == []


@pytest.mark.any_database
def test_a_limit_below_what_is_committed_stops_others_and_not_the_job_that_has_it(world: World):
    job, other = world.job(), world.job()
    world.limit("team", 100)
    commit(world, job, 80)
    world.limit("team", 40)
    machine = world.hold(job, 30)
    account, until = world.account("job", job).id, 2
    world.store.write(lambda db: ledger.extend_hold(db, machine, 20, until, reserved=True))
    with pytest.raises(BudgetExceeded):
        world.hold(other, 1)
    world.settle(machine, 45)
    assert world.totals(job)[2] == (45, 35, 40)
    world.store.write(lambda db: ledger.adjust_commitment(db, account, 0))
    assert world.totals(job)[2] == (45, 0, 5)
    assert world.find_discrepancies() == []


@pytest.mark.any_database
def test_a_period_that_begins_pays_for_what_is_committed_at_its_border(world: World):
    job = world.job()
    world.limit("team", 100)
    commit(world, job, 70)
    machine = world.hold(job, 20)
    world.period("team")
    after = world.roll_over("team")
    assert after is not None
    assert (ledger.period_limit(after), ledger.period_use(after)) == (100, (0, 50))
    world.settle(machine, 20)
    assert ledger.period_use(world.account("team")) == (0, 50)
    world.settle(world.hold(job, 50), 50)
    assert ledger.period_use(world.account("team")) == (50, 0)
    assert world.find_discrepancies() == []


def test_machines_that_draw_on_a_commitment_at_the_same_time_get_all_of_it_and_no_more(world: World):
    job = world.job()
    world.limit("team", 100)
    commit(world, job, 100)
    machines = [world.machine(job) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda machine: _try_hold(world, job, machine), machines))
    assert sum(outcomes) == 5
    assert (committed(world, job), world.totals(job)[2]) == (0, (0, 100, 0))
    assert world.find_discrepancies() == []


def _try_hold(world: World, job: JobRow, machine: object) -> bool:
    try:
        world.hold(job, 20, machine)
    except BudgetExceeded:
        return False
    return True


@pytest.mark.any_database
def test_no_order_of_commitments_holds_and_bills_overspends(world: World, seed: int):
    generator = random.Random(seed)
    job, other = world.job(), world.job()
    world.limit("team", 200)
    commit(world, job, 100)
    open_ = []
    for _ in range(60):
        step, amount = (
            generator.choice(["hold", "hold", "settle", "post", "release", "adjust"]),
            generator.randint(1, 60),
        )
        try:
            if step == "hold":
                of = generator.choice([job, other])
                open_.append((world.hold(of, amount), amount))
            elif step == "adjust":
                adjust(world, job, amount)
            elif open_:
                machine, held = open_.pop(generator.randrange(len(open_)))
                if step == "release":
                    world.store.write(lambda db, m=machine: ledger.release_hold(db, m, LaunchNotNeeded()))
                else:
                    world.settle(machine, generator.randint(0, held), final=True)
        except BudgetExceeded:
            pass
        posted, held, overdraft = world.totals(job)[2]
        assert posted + held <= 200
        assert overdraft == 0
    assert world.find_discrepancies() == []

# SPDX-License-Identifier: Apache-2.0
"""Soft lines of budgets: told once for each limit, whichever way use or the limit moves."""

from __future__ import annotations

import pytest
from shoestring_core.errors import BudgetExceeded
from shoestring_core.store import ledger
from shoestring_core.wording.machines import LaunchNotNeeded

from tests.core.store.test_ledger import run_all
from tests.core.store.test_limits import members
from tests.core.world import World


def test_each_line_is_told_once_however_often_use_falls_and_rises(world: World) -> None:
    job = world.job()
    world.limit("team", 100)
    machine = world.hold(job, 79)
    assert told(world) == [50]
    world.hold(job, 1)
    assert told(world) == [50, 80]
    world.store.write(lambda db: ledger.release_hold(db, machine, LaunchNotNeeded()))
    world.settle(world.hold(job, 85), 85)
    assert told(world) == [50, 80]
    world.hold(job, 14)
    assert told(world) == [50, 80, 90, 100]
    said = world.events("soft_line")[1]
    assert (said.actor, said.reason["code"]) == ("ledger", "soft_line_reached")
    assert (said.data["used"], said.data["limit"]) == ("0.00008", "0.0001")
    assert world.find_discrepancies() == []


def test_a_limit_that_moved_is_told_anew(world: World) -> None:
    job = world.job()
    world.limit("team", 100)
    world.hold(job, 60)
    world.limit("team", 200)
    assert told(world) == [50]
    world.hold(job, 50)
    assert told(world) == [50, 50]
    world.limit("team", 112)
    assert told(world) == [50, 50, 50, 80, 90]
    world.grant(world.account("team"), 1)
    assert told(world) == [50, 50, 50, 80, 90, 50, 80, 90]


def test_an_overrun_and_a_transfer_reach_lines(world: World) -> None:
    ann, ben = members(world)
    world.hold(world.job(), 45)
    world.transfer(ann, ben, 20)
    assert told(world) == [50]
    world.settle(world.hold(world.job(), 5), 30)
    assert told(world) == [50, 80, 90]


def test_a_refused_hold_tells_nothing(world: World) -> None:
    job = world.job()
    world.limit("org", 100)
    world.limit("member", 150)
    with pytest.raises(BudgetExceeded):
        world.hold(job, 120)
    assert told(world) == []


def test_lines_are_changed_for_one_budget(world: World) -> None:
    job = world.job()
    team = world.limit("team", 100)
    world.hold(job, 75)
    after = world.store.write(lambda db: ledger.set_soft_lines(db, team.id, [70, 95], actor="ann", reason="x"))
    assert (after.soft_lines, after.soft_line_reached) == ([70, 95], 70)
    assert told(world) == [50, 70]
    assert world.events("soft_lines")[0].data == {"account": str(team.id), "percents": [70, 95]}
    world.store.write(lambda db: ledger.set_soft_lines(db, team.id, [], actor="ann", reason=""))
    world.hold(job, 25)
    assert told(world) == [50, 70]


def test_racing_holds_tell_each_line_once(world: World) -> None:
    jobs = [world.job() for _ in range(4)]
    world.limit("team", 400)
    run_all(*((lambda j=job: [world.hold(j, 10) for _ in range(9)]) for job in jobs))
    assert told(world) == [50, 80, 90]
    assert world.find_discrepancies() == []


@pytest.mark.any_database
def test_a_jobs_own_limit_has_no_lines(world: World) -> None:
    world.hold(world.job("0.0001"), 100)
    assert told(world) == []


def told(world: World) -> list[int]:
    return [event.data["percent"] for event in world.events("soft_line")]

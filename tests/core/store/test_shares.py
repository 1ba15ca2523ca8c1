# SPDX-License-Identifier: Apache-2.0
"""What teams and members spent lately, and their weights, as they are stored and read for a schedule."""

from __future__ import annotations

from uuid import UUID

import pytest
from shoestring_core import spec
from shoestring_core.decide.queue import QueuedJob
from shoestring_core.decide.timeouts import S
from shoestring_core.store import events, identity, jobs, ledger
from shoestring_core.store.fleet import queue
from shoestring_core.store.tables import AccountRow
from sqlalchemy import exc, update

from tests.core.world import Fleet, World

DAY = 86_400


def recent(fleet: Fleet, kind: str) -> int:
    return fleet.read(ledger.recent_spending, fleet.account(kind), fleet.read(ledger.load_half_life))


def test_what_was_spent_lately_is_kept_for_team_and_member_and_halves_with_each_half_life(fleet: Fleet) -> None:
    job = fleet.job()
    fleet.settle(fleet.hold(job, 1000), 800)
    fleet.clock.pass_(7 * DAY)
    assert [recent(fleet, kind) for kind in ("member", "team", "org")] == [400, 400, 0]
    fleet.settle(fleet.hold(job, 1000), 100)
    assert recent(fleet, "team") == 500
    fleet.clock.pass_(14 * DAY)
    assert recent(fleet, "team") == 125
    assert fleet.account("team").posted == 900
    assert fleet.find_discrepancies() == []


def test_slices_and_overruns_count_once_and_holds_and_corrections_as_what_they_are(fleet: Fleet) -> None:
    job = fleet.job()
    machine = fleet.hold(job, 1000)
    fleet.settle(machine, 300, final=False)
    fleet.settle(machine, 300, final=False)
    assert recent(fleet, "team") == 300
    fleet.settle(machine, 1200)
    assert recent(fleet, "team") == 1200
    fleet.settle(machine, 1100)
    assert recent(fleet, "team") == 1100


def test_another_half_life_counts_from_now_on(fleet: Fleet) -> None:
    fleet.settle(fleet.hold(fleet.job(), 1000), 800)
    fleet.write(ledger.set_half_life, DAY * S)
    assert fleet.read(ledger.load_half_life) == DAY * S
    fleet.clock.pass_(2 * DAY)
    assert recent(fleet, "team") == 200


def second_team(world: World) -> identity.Principal:
    org = world.account("org").owner
    return world.store.write(lambda db: identity.ensure_admin(db, org, f"second {world.name}", f"bob {world.name}"))


def set_weight(world: World, account: UUID, weight: int) -> AccountRow:
    return world.store.write(lambda db: ledger.set_weight(db, account, weight, actor="ann", reason="a grant"))


def test_a_teams_new_weight_is_an_event_of_all_teams_that_share_with_it(fleet: Fleet) -> None:
    other = second_team(fleet)
    team = fleet.account("team")
    assert fleet.requests_tick(lambda: set_weight(fleet, team.id, 3)), "it may be another's turn now"
    assert fleet.account("team").weight == 3
    for one in (fleet.team, other.team):
        (event,) = fleet.read(events.load_events, one, 0, 10)
        assert (event.kind, event.actor) == ("weight", "ann")
        assert event.data == {"account": str(team.id), "weight": 3, "before": 1}
        assert event.reason["facts"]["note"] == "a grant"
    assert set_weight(fleet, fleet.account("member").id, 2).weight == 2
    assert len(fleet.events("weight")) == 2
    assert len(fleet.read(events.load_events, other.team, 0, 10)) == 1


@pytest.mark.parametrize("weight", [0, -1, 1001])
def test_the_database_holds_no_weight_out_of_bounds(fleet: Fleet, weight: int) -> None:
    team = fleet.account("team").id
    with pytest.raises(exc.IntegrityError):
        fleet.write(lambda db: db.execute(update(AccountRow).where(AccountRow.id == team).values(weight=weight)))


def test_a_schedule_reads_what_was_spent_lately_and_weights_and_the_first_jobs_of_each_member(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "PAGE", 4)
    other, own = second_team(fleet), [fleet.job() for _ in range(3)]
    fleet.settle(fleet.hold(own[0], 1000), 800)
    fleet.clock.pass_(7 * DAY)
    set_weight(fleet, fleet.account("team").id, 3)
    wanted = spec.parse({"recipe": "digits/quickstart"})
    last = fleet.write(jobs.submit, other, wanted, min_hold=0).job
    loaded = fleet.read(queue.load_queue, fleet.timeouts, {})
    first, second, behind = sorted(own, key=lambda job: (job.queued_at, job.id))
    assert [one.job for one in loaded.snapshot.queue] == [first.id, second.id, last.id]
    member = loaded.snapshot.queue[0].member
    assert loaded.snapshot.unread == {member}
    used = [loaded.snapshot.balances[account] for account in member]
    assert [(one.recent, one.weight) for one in used] == [(400, 1), (400, 3), (0, 1)]
    with fleet.store.read() as db:
        known: dict[UUID, QueuedJob] = {}
        more = queue.load_queue(db, fleet.timeouts, known, queue.load_queue(db, fleet.timeouts, known))
    assert [one.job for one in more.snapshot.queue] == [first.id, second.id, behind.id, last.id]
    assert more.snapshot.unread == frozenset()

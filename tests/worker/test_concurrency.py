# SPDX-License-Identifier: Apache-2.0
"""Concurrency caps, from rows to starts: what counts, until when, and that no plan made with other caps is applied."""

from __future__ import annotations

from uuid import UUID

import pytest
from shoestring_core import wording
from shoestring_core.decide.offers import Hardware, Offer
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.store import jobs, ledger
from shoestring_core.store.fleet import planning, queue
from shoestring_core.store.fleet.offers import load_known
from shoestring_core.store.fleet.running_jobs import InUse, load_in_use
from shoestring_core.store.tables import EventRow
from shoestring_worker.providers.sim import REGION
from sqlalchemy import select

from tests.worker.conftest import World
from tests.worker.test_control_loop import finish

pytestmark = pytest.mark.any_database


def cap(world: World, jobs: int | None = None, gpus: int | None = None) -> None:
    """Of the team."""

    def work(db):
        account = ledger.team_account(db, world.admin.team).id
        ledger.set_concurrency(db, account, jobs, gpus, actor="ann", reason="")

    world.store.write(work)


def in_use(world: World) -> InUse:
    """Of the team, and so of its only member."""
    with world.store.read() as db:
        counted = load_in_use(db)
    own = [counted.get(owner, InUse()) for owner in (str(world.admin.team), f"{world.admin.team}/{world.admin.user}")]
    assert own[0] == own[1]
    return own[0]


def states(world: World, submitted: list[UUID]) -> list[tuple[str, str | None]]:
    return [(row.state, row.wait_reason) for row in map(world.job, submitted)]


def test_a_job_beyond_the_cap_says_so_and_starts_once_the_machines_of_another_have_ended(world: World):
    cap(world, jobs=2)
    submitted = [world.submit() for _ in range(3)]
    world.tick()
    assert states(world, submitted) == [("launching", None), ("launching", None), ("queued", "cap")]
    told = world.job(submitted[2]).wait_detail
    assert wording.render(**told).startswith("Team vision runs 2 of at most 2 jobs at once. ")
    assert in_use(world) == InUse(2, 0)
    finish(world, submitted[0])
    world.tick()
    assert states(world, submitted)[2] == ("launching", None)


def test_with_a_lowered_cap_what_runs_goes_on_and_with_none_everything_starts(world: World):
    submitted = [world.submit() for _ in range(2)]
    world.tick()
    cap(world, jobs=1)
    submitted.append(world.submit())
    world.tick()
    assert states(world, submitted) == [("launching", None), ("launching", None), ("queued", "cap")]
    cap(world)
    world.tick()
    assert states(world, submitted)[2] == ("launching", None)
    with world.store.read() as db:
        told = select(EventRow.data).where(EventRow.kind == "concurrency").order_by(EventRow.seq)
        changes = list(db.sql.scalars(told))
    assert [(one["max_jobs"], one["max_gpus"]) for one in changes] == [(1, None), (None, None)]


def test_a_machine_that_was_lost_counts_while_its_job_gets_another(world: World, monkeypatch: pytest.MonkeyPatch):
    hardware = Hardware(8, 32_768, "T4", 2, 16_384)
    offer = Offer(world.provider.name, REGION, "", "two", "spot", "1", "9", 9, "sim", True, hardware)
    monkeypatch.setattr(world.provider, "offers", lambda _: [offer])
    cap(world, gpus=5)
    gang = world.submit(resources={"nodes": "1..2", "gpu": "T4"})
    world.tick()
    world.form(gang)
    world.train(gang, 10)
    monkeypatch.setattr(world.provider, "fault", lambda _: RefusalKind.CAPACITY)
    world.provider.end(world.alive(gang)[1].provider_id, "crashed")
    world.tick(3)
    assert len(world.alive(gang)) == 1
    assert in_use(world) == InUse(1, 4)
    beside = world.submit(resources={"gpu": "T4"})
    world.tick()
    assert states(world, [beside]) == [("queued", "cap")]
    assert "Needs 2 GPUs, and team vision has 4 of at most 5" in wording.render(**world.job(beside).wait_detail)
    world.store.write(lambda db: jobs.stop(db, gang, "ann"))


def test_nothing_of_a_plan_is_applied_that_was_made_before_a_cap_was_changed(world: World):
    world.control_loop.tick()  # offers are known from here on
    job = world.submit()
    with world.store.read() as db:
        snapshot, known = queue.load_queue(db, world.timeouts, {}).snapshot, load_known(db)
        (start,) = schedule_jobs(snapshot, known.offers, db.now, known.timeouts).starts
    cap(world, jobs=0)
    stale = world.store.write(
        lambda db: planning.record_start(db, start, snapshot.plan_version, agent_url="http://a", deployment="d")
    )
    assert stale is None
    assert states(world, [job])[0][0] == "queued"

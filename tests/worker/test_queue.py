# SPDX-License-Identifier: Apache-2.0
"""A long queue: what a tick costs when nothing has changed, and that a change is never missed."""

from __future__ import annotations

import contextlib
import random
from uuid import UUID

import pytest
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import BudgetExceeded
from shoestring_core.store import jobs, ledger
from shoestring_core.store.fleet import queue
from shoestring_core.store.tables import EventRow
from sqlalchemy import select

from tests.statements import Statements, counted
from tests.worker.conftest import World


def tick_alone(world: World) -> Statements:
    with counted(world.store) as statements:
        world.control_loop.tick()
    return statements


def test_a_tick_in_which_nothing_changed_writes_nothing_and_reads_as_much_as_with_one_job(world: World):
    world.provider.slots = 1
    world.submit()
    world.submit()
    world.tick()
    short = tick_alone(world)
    for _ in range(60):
        world.submit()
    world.tick()
    long = tick_alone(world)
    assert long.writes == short.writes == []
    assert long.reads == short.reads < 30


def test_a_change_at_the_head_of_the_queue_takes_as_many_statements_however_long_it_is(world: World):
    """The waits of all jobs behind are written together."""
    counts = []
    world.provider.slots = 1
    world.submit()
    for length in (5, 60):
        waiting = [world.submit() for _ in range(length)]
        world.tick()
        world.store.write(lambda db, first=waiting[0]: jobs.stop(db, first, "ann"))
        statements = tick_alone(world)
        counts.append((statements.reads, len(statements.writes)))
        assert world.job(waiting[1]).wait_detail["facts"]["position"] == 1
        for job in waiting[1:]:
            world.store.write(lambda db, job=job: jobs.stop(db, job, "ann"))
        world.tick()
    assert counts[0] == counts[1]


def test_a_wait_whose_reason_changes_is_an_event_and_one_whose_facts_change_is_none(world: World):
    world.provider.slots = 1
    _, first, second = world.submit(), world.submit(), world.submit()
    world.tick()
    world.store.write(lambda db: jobs.stop(db, first, "ann"))
    world.tick()
    assert world.job(second).wait_detail["facts"]["position"] == 1
    world.budget(0)
    world.tick()
    with world.store.read() as db:
        query = select(EventRow).where(EventRow.kind == "wait", EventRow.job == second).order_by(EventRow.seq)
        changes = [(row.data["from"], row.data["to"]) for row in db.sql.scalars(query)]
    assert changes == [(None, "slots"), ("slots", "budget")]


def test_a_wait_decided_before_its_job_left_the_queue_is_not_recorded(world: World):
    job = world.submit()
    world.budget(0)
    with world.store.read() as db:
        loaded = queue.load_queue(db, world.timeouts, {})
    waits = schedule_jobs(loaded.snapshot, world.provider.offers(()), world.clock.now, {"sim": world.timeouts}).waits
    world.store.write(lambda db: jobs.stop(db, job, "ann"))
    assert world.store.write(lambda db: queue.apply_waits(db, waits, loaded.waits, loaded.mark.epoch))
    assert world.job(job).wait_reason is None
    with world.store.read() as db:
        assert db.sql.scalars(select(EventRow).where(EventRow.kind == "wait")).all() == []


def test_of_two_plans_of_waits_made_at_the_same_epoch_one_is_applied(world: World):
    job = world.submit()
    world.budget(0)
    with world.store.read() as db:
        loaded = queue.load_queue(db, world.timeouts, {})
    waits = schedule_jobs(loaded.snapshot, world.provider.offers(()), world.clock.now, {"sim": world.timeouts}).waits
    world.tick()
    detail = world.job(job).wait_detail
    assert not world.store.write(lambda db: queue.apply_waits(db, waits, loaded.waits, loaded.mark.epoch))
    assert world.job(job).wait_detail == detail


@pytest.mark.any_database
def test_a_job_starts_again_when_its_backoff_ends_although_nothing_else_changes(world: World):
    world.provider.fault = lambda _: RefusalKind.CAPACITY
    job = world.submit()
    world.tick()
    while world.job(job).state == "launching":
        world.tick(1)
    world.provider.fault = lambda _: None
    began = world.clock.now
    while world.job(job).state == "queued":
        world.tick(0.5)
    assert queue.CAPACITY_DELAY / 2 <= world.clock.now - began <= 2 * queue.CAPACITY_DELAY


@pytest.mark.any_database
def test_what_a_worker_remembers_never_hides_what_a_whole_schedule_would_change(world: World, seed: int):
    """After each tick, a worker that remembers nothing would start no job, and give none another reason to wait."""
    rng = random.Random(seed)
    submitted: list[UUID] = []
    slow = world.another_control_loop()  # a second worker that ticks now and then, with older memories
    for _ in range(60):
        act(world, rng, submitted)
        if rng.random() < 0.3:
            slow.tick()
        world.tick(rng.choice((0, 0.5, 5)))
        with world.store.read() as db:
            loaded = queue.load_queue(db, world.timeouts, {})
        schedule = schedule_jobs(loaded.snapshot, world.provider.offers(()), world.clock.now, {"sim": world.timeouts})
        assert schedule.starts == ()
        assert loaded.changed(schedule.waits) == []


def act(world: World, rng: random.Random, submitted: list[UUID]) -> None:
    """One thing that people, machines or the provider may do."""
    queued = [job for job in submitted if world.job(job).state != "ended"]
    kind = rng.choice(("submit", "submit", "stop", "budget", "job budget", "slots", "preempt", "refuse", "nothing"))
    if kind == "submit":
        with contextlib.suppress(BudgetExceeded):
            submitted.append(world.submit(nodes=rng.choice((1, 1, 2))))
    elif kind == "stop" and queued:
        chosen, mode = rng.choice(queued), rng.choice(("pause", "stop"))
        if world.job(chosen).desired_state == "run":
            world.store.write(lambda db: jobs.stop(db, chosen, "ann", mode))
    elif kind == "budget":
        world.budget(rng.choice((None, None, 0, 30_000)))
    elif kind == "job budget" and queued:
        chosen = rng.choice(queued)

        def limit(db):
            ledger.set_limit(db, ledger.job_account(db, chosen).id, rng.choice((None, 0)), actor="ann", reason="test")

        world.store.write(limit)
    elif kind == "slots":
        world.provider.slots = rng.choice((0, 1, 2, 4))
    elif kind == "preempt":
        for machine in world.provider.list(world.control_loop.deployment):
            if machine.state == "running" and rng.random() < 0.5:
                world.provider.end(machine.id, "preempted")
    elif kind == "refuse":
        refused = rng.random() < 0.5
        world.provider.fault = lambda _: RefusalKind.CAPACITY if refused else None
    world.clock.pass_(rng.choice((0, 1 / S)))

# SPDX-License-Identifier: Apache-2.0
"""A long queue: what a tick costs when nothing has changed, and that a change is never missed."""

from __future__ import annotations

import contextlib
import random
from typing import Any
from uuid import UUID

import pytest
from shoestring_core import wording
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.retries import REFUSED_DELAY
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.decide.start import Wait
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import BudgetExceeded
from shoestring_core.store import identity, jobs, ledger, queries
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
    assert long.reads == short.reads <= 15


def positions(world: World, submitted: list[UUID]) -> list[int | None]:
    with world.store.read() as db:
        return [one.queue_position for one in queries.load_job_rows(db, [world.job(job) for job in submitted])]


def waits_of(world: World, submitted: list[UUID]) -> list[str | None]:
    return [world.job(job).wait_reason for job in submitted]


def test_a_change_at_the_head_of_the_queue_takes_as_many_statements_however_long_it_is(world: World):
    """Nothing that is stored with the jobs behind names their place."""
    counts = []
    world.provider.slots = 1
    world.submit()
    for length in (5, 60):
        waiting = [world.submit() for _ in range(length)]
        world.tick()
        world.store.write(lambda db, first=waiting[0]: jobs.stop(db, first, "ann"))
        statements = tick_alone(world)
        counts.append((statements.reads, len(statements.writes)))
        assert positions(world, waiting[1:])[0] == 1
        for job in waiting[1:]:
            world.store.write(lambda db, job=job: jobs.stop(db, job, "ann"))
        world.tick()
    assert counts[0] == counts[1]


def test_a_schedule_reads_the_queue_only_as_far_as_a_job_may_start(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue, "PAGE", 5)
    world.provider.slots = 1
    submitted = [world.submit() for _ in range(30)]
    world.tick()
    assert world.job(submitted[0]).state == "launching"
    assert waits_of(world, submitted[1:]) == ["slots"] * 5 + [None] * 24
    assert positions(world, submitted) == [None, *range(1, 30)]


@pytest.mark.any_database
def test_jobs_in_front_that_hold_up_nobody_keep_no_job_from_its_start(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue, "PAGE", 5)
    world.provider.slots = 2
    oversized = [world.submit(nodes=3) for _ in range(30)]
    submitted = [world.submit() for _ in range(30)]
    world.tick()
    assert {world.job(job).wait_reason for job in oversized} == {"capacity"}
    assert [world.job(job).state for job in submitted] == ["launching"] * 2 + ["queued"] * 28


@pytest.mark.any_database
def test_jobs_of_a_team_without_money_are_not_read_to_find_those_of_another(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(queue, "PAGE", 5)
    other = world.store.write(lambda db: identity.ensure_admin(db, "org", "speech", "bob"))
    submitted = [world.submit() for _ in range(30)]
    world.budget(0)
    job = world.submit(principal=other)
    world.tick()
    assert waits_of(world, submitted) == ["budget"] * 5 + [None] * 25
    assert world.job(job).state == "launching"


@pytest.mark.any_database
def test_of_two_teams_under_one_limit_the_one_that_used_less_is_next_and_the_other_is_told_so(world: World):
    other = world.store.write(lambda db: identity.ensure_admin(db, "org", "speech", "bob"))
    world.provider.slots = 1
    running, behind = world.submit(), world.submit()
    world.tick()
    first = world.submit(principal=other)
    world.tick()
    assert waits_of(world, [first, behind]) == ["slots", "slots"]
    told = world.job(behind).wait_detail
    assert told["facts"]["first"]["code"] == "less_used"
    assert " speech has used $0.00 lately, team vision $0.0" in wording.render(**told)
    world.tick(20)
    world.provider.end(world.machines(running)[0].provider_id, "preempted")
    world.tick(11)
    states = [world.job(job).state for job in (running, behind, first)]
    assert states == ["queued", "queued", "launching"]


@pytest.mark.any_database
def test_a_job_that_no_schedule_reaches_any_more_loses_the_reason_that_it_had(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(queue, "PAGE", 3)
    world.provider.slots = 2
    world.submit(), world.submit()
    oversized = [world.submit(nodes=3) for _ in range(3)]
    behind = [world.submit() for _ in range(2)]
    world.tick()
    assert waits_of(world, oversized + behind) == ["capacity"] * 3 + ["slots"] * 2
    world.provider.slots = 3  # from now on the first oversized job waits for all three, and nobody overtakes it
    world.tick(11)
    assert waits_of(world, oversized + behind) == ["slots"] * 3 + [None] * 2
    assert wait_events(world, behind[1]) == [(None, "slots"), ("slots", "turn")]


def test_a_wait_whose_reason_changes_is_an_event_and_one_whose_facts_change_is_none(world: World):
    world.provider.slots = 1
    _, first, second = world.submit(), world.submit(), world.submit()
    world.tick()
    world.store.write(lambda db: jobs.stop(db, first, "ann"))
    world.tick()
    assert not world.job(second).wait_detail["facts"]["behind"]
    world.budget(0)
    world.tick()
    assert wait_events(world, second) == [(None, "slots"), ("slots", "budget")]


def wait_events(world: World, job: UUID) -> list[tuple[str | None, str]]:
    with world.store.read() as db:
        query = select(EventRow).where(EventRow.kind == "wait", EventRow.job == job).order_by(EventRow.seq)
        return [(row.data["from"], row.data["to"]) for row in db.sql.scalars(query)]


def test_a_wait_decided_before_its_job_left_the_queue_is_not_recorded(world: World):
    job = world.submit()
    world.budget(0)
    with world.store.read() as db:
        loaded = queue.load_queue(db, world.timeouts, {})
    waits = schedule_jobs(loaded.snapshot, world.provider.offers(()), world.clock.now, {"sim": world.timeouts}).waits
    world.store.write(lambda db: jobs.stop(db, job, "ann"))
    assert world.store.write(lambda db: queue.apply_waits(db, waits, loaded.waits, loaded.mark.plan_version))
    assert world.job(job).wait_reason is None
    with world.store.read() as db:
        assert db.sql.scalars(select(EventRow).where(EventRow.kind == "wait")).all() == []


def test_of_two_plans_of_waits_of_the_same_version_one_is_applied(world: World):
    job = world.submit()
    world.budget(0)
    with world.store.read() as db:
        loaded = queue.load_queue(db, world.timeouts, {})
    waits = schedule_jobs(loaded.snapshot, world.provider.offers(()), world.clock.now, {"sim": world.timeouts}).waits
    world.tick()
    detail = world.job(job).wait_detail
    assert not world.store.write(lambda db: queue.apply_waits(db, waits, loaded.waits, loaded.mark.plan_version))
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
    assert REFUSED_DELAY / 2 <= world.clock.now - began <= 2 * REFUSED_DELAY


@pytest.mark.any_database
@pytest.mark.parametrize("page", [2, queue.PAGE])
def test_what_a_worker_remembers_and_reads_never_hides_what_a_whole_schedule_would_change(
    world: World, seed: int, page: int, monkeypatch: pytest.MonkeyPatch
):
    """After each tick, a worker that remembers nothing and reads the whole queue would start no job, and give none
    another reason to wait than is stored. How much money is missing may have changed since: holds are extended without
    a new schedule, which is made after RECHECK_S at the latest."""
    rng = random.Random(seed)
    submitted: list[UUID] = []
    teams = (("vision", "ann"), ("vision", "eve"), ("speech", "bob"))
    people = [world.store.write(lambda db, one=one: identity.ensure_admin(db, "org", *one)) for one in teams]
    slow = world.another_control_loop()  # a second worker that ticks now and then, with older memories
    for _ in range(60):
        act(world, rng, submitted, people)
        monkeypatch.setattr(queue, "PAGE", page)
        if rng.random() < 0.3:
            slow.tick()
        world.tick(rng.choice((0, 0.5, 5)))
        monkeypatch.setattr(queue, "PAGE", 1000)
        with world.store.read() as db:
            loaded = queue.load_queue(db, world.timeouts, {})
        schedule = schedule_jobs(loaded.snapshot, world.provider.offers(()), world.clock.now, {"sim": world.timeouts})
        assert schedule.starts == ()
        changed = [wait for wait in loaded.changed(schedule.waits) if wait.job in loaded.waits]
        assert [wait for wait in changed if without_amounts(wait) != stored_reason(loaded.waits[wait.job])] == []
        if page > len(loaded.snapshot.queue):
            assert loaded.waits.keys() == {wait.job for wait in schedule.waits}


def without_amounts(wait: Wait) -> Any:
    return stored_reason((wait.reason, wait.detail.as_json()))


def stored_reason(stored: tuple[str | None, Any]) -> Any:
    reason, detail = stored
    if detail is None:
        return reason, None, {}
    facts = {name: value for name, value in detail["facts"].items() if name not in ("need", "missing")}
    if first := facts.pop("first", None):
        facts |= {name: first["facts"][name] for name in ("first", "second")}
    return reason, detail["code"], facts


def act(world: World, rng: random.Random, submitted: list[UUID], people: list[identity.Principal]) -> None:
    """One thing that people, machines or the provider may do."""
    queued = [job for job in submitted if world.job(job).state != "ended"]
    kinds = ("submit", "submit", "stop", "budget", "job budget", "weight", "slots", "preempt", "refuse", "nothing")
    kind = rng.choice(kinds)
    if kind == "submit":
        with contextlib.suppress(BudgetExceeded):
            submitted.append(world.submit(nodes=rng.choice((1, 1, 2)), principal=rng.choice(people)))
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
    elif kind == "weight":
        team, weight = rng.choice(people).team, rng.choice((1, 2, 5))
        world.store.write(
            lambda db: ledger.set_weight(db, ledger.team_account(db, team).id, weight, actor="ann", reason="test")
        )
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


@pytest.mark.any_database
def test_a_short_job_fills_the_gap_that_a_gang_leaves_while_it_waits(world: World):
    world.provider.slots = 3
    hour = world.submit(nodes=2, limits={"time": 3600})
    world.tick()
    world.form(hour)
    world.train(hour, 5)
    gang, endless, short = world.submit(nodes=2), world.submit(), world.submit(limits={"time": 60})
    world.tick()
    assert [world.job(job).state for job in (gang, endless, short)] == ["queued", "queued", "launching"]
    assert waits_of(world, [gang, endless]) == ["slots", "slots"]

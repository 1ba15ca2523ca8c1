# SPDX-License-Identifier: Apache-2.0
"""A schedule is made from the jobs that wait, as far as they are read, and from nothing that has left the queue."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from shoestring_core import spec
from shoestring_core.decide.deadlines import DeadlineCase, DeadlinePlan, Seen
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.retries import retry_delay
from shoestring_core.decide.start import Wait
from shoestring_core.decide.timeouts import S
from shoestring_core.events import WaitChange
from shoestring_core.store import deadlines, jobs, ledger
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import launches, queue
from shoestring_core.store.tables import AccountRow, AttemptRow, DeadlineRow, JobRow
from shoestring_core.wording.waits import InQueue, ProviderUnanswered
from sqlalchemy import event

from tests.core.world import Fleet, World
from tests.statements import counted

UNANSWERED = ProviderUnanswered("local", "")
STORED = ("capacity", UNANSWERED.as_json())


def load(fleet: Fleet, **more: Any) -> queue.LoadedQueue:
    return fleet.read(queue.load_queue, fleet.timeouts, more.pop("known", {}), **more)


def in_line(fleet: Fleet, number: int) -> list[UUID]:
    """Jobs that were queued one after the other."""
    ids = []
    for _ in range(number):
        ids.append(fleet.job().id)
        fleet.clock.pass_(1)
    return ids


def ids(loaded: queue.LoadedQueue) -> list[UUID]:
    return [one.job for one in loaded.snapshot.queue]


# What is read


@pytest.mark.any_database
def test_a_job_of_each_member_is_read_however_many_members_there_are(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "PAGE", 1)
    jobs_of_two = [world.job().id for world in (fleet, World(fleet.store))]
    assert sorted(one.job for one in load(fleet).snapshot.queue) == sorted(jobs_of_two)


@pytest.mark.any_database
def test_nothing_is_queued_in_a_service_without_teams(store: Store) -> None:
    with store.read() as db:
        assert queue.load_mark(db) == queue.QueueMark(False, 0, 0, 0, deadlines=0)


@pytest.mark.any_database
def test_a_schedule_reads_no_accounts_of_jobs_that_are_not_queued(fleet: Fleet) -> None:
    """It stays as cheap as it is, however many jobs there have been."""
    fleet.running()
    fleet.job()
    read = []

    def note(row: AccountRow, _context: object) -> None:
        read.append(row.kind)

    event.listen(AccountRow, "load", note)
    try:
        load(fleet)
    finally:
        event.remove(AccountRow, "load", note)
    assert sorted(read) == ["member", "org", "team"]


def test_the_queue_has_the_jobs_that_may_start_in_their_order(fleet: Fleet) -> None:
    assert load(fleet).snapshot.queue == ()
    running = fleet.start(nodes=2)
    first = fleet.job(resources={"nodes": 3}).id
    paused = fleet.job().id
    fleet.clock.pass_(1)
    second = fleet.job().id
    fleet.write(jobs.stop, paused, "ann", "pause")
    stranger = World(fleet.store)
    third = stranger.job().id
    fleet.clock.pass_(1)
    fleet.alter(JobRow, JobRow.id == first, queued_at=fleet.clock.now)
    seen = load(fleet).snapshot
    assert [one.job for one in seen.queue] == [*sorted([second, third]), first]
    assert seen.machines_in_use == {"local": 2}
    assert running not in [one.job for one in seen.queue]
    queued = seen.queue[-1]
    assert (queued.requirements.nodes, queued.requirements.type, queued.attempt, queued.reopened) == (3, None, 1, False)
    assert (queued.terminating_machines, queued.not_before) == (0, 0)
    path = [fleet.account(kind, fleet.job_row(first)) for kind in ("job", "member", "team", "org")]
    assert queued.account_path == tuple(row.id for row in path)
    held = 2 * fleet.hold_row(fleet.ids(running)[0]).amount
    balances = [seen.balances[row.id] for row in path]
    assert [(one.limit, one.posted, one.held, one.overdraft) for one in balances] == [
        (None, 0, 0, 0), (None, 0, held, 0), (None, 0, held, 0), (None, 0, held, 0),
    ]  # fmt: skip
    assert [one.name for one in balances] == [
        "this job", f"member user {fleet.name}", f"team team {fleet.name}", f"organization org {fleet.name}",
    ]  # fmt: skip


def test_a_job_is_queued_with_the_machines_that_still_terminate(fleet: Fleet) -> None:
    job, (first, second) = fleet.running(nodes=2)
    fleet.end_attempt(job, "machine_lost")
    assert load(fleet).snapshot.queue[0].terminating_machines == 2
    fleet.end(first)
    assert load(fleet).snapshot.queue[0].terminating_machines == 1
    fleet.end(second)
    queued = load(fleet).snapshot.queue[0]
    assert (queued.terminating_machines, queued.closing) == (0, True)
    fleet.finish_attempt(job)
    queued = load(fleet).snapshot.queue[0]
    assert (queued.terminating_machines, queued.closing, queued.attempt, queued.reopened) == (0, False, 2, False)
    assert load(fleet).snapshot.machines_in_use == {}


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(
    ("reason", "trained", "delay"),
    [
        ("machine_lost", False, S // 2), ("not_ready", False, S // 2), ("capacity", False, 5 * S),
        ("boot", False, S // 2), ("price", False, 5 * S),
        ("machine_lost", True, None), ("preempted", False, None), ("stop", False, None),
    ],
)  # fmt: skip
def test_a_job_whose_attempt_trained_nothing_is_retried_after_a_delay(
    fleet: Fleet, reason: str, trained: bool, delay: int | None
) -> None:
    job, _ = fleet.running()
    closed_at = fleet.clock.now
    fleet.end_attempt(job, reason)
    fleet.finish_attempt(job)
    fleet.alter(AttemptRow, AttemptRow.job == job, trained=trained)
    fleet.clock.pass_(1)
    queued = load(fleet).snapshot.queue[0]
    assert queued.not_before == (0 if delay is None else closed_at + retry_delay(job, reason, 1, fleet.timeouts))
    assert queued.refused == (reason in ("capacity", "price"))


def test_the_delay_doubles_with_each_attempt_in_a_row_that_trained_nothing(fleet: Fleet) -> None:
    job = fleet.job(resources={"nodes": 1}).id
    reasons = ["machine_lost", "preempted", "machine_lost", "not_ready", "machine_lost"]
    delays = []
    for reason in reasons:
        fleet.clock.pass_(100)
        fleet.open_attempt(job)
        fleet.launch(job)
        closed_at = fleet.clock.now
        fleet.end_attempt(job, reason)
        fleet.finish_attempt(job)
        not_before = load(fleet).snapshot.queue[0].not_before
        delays.append(not_before and not_before - closed_at)
    assert [delay // (S // 2) for delay in delays] == [1, 0, 1, 2, 4]


@pytest.mark.any_database
def test_more_of_the_queue_is_read_behind_what_was_read(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "PAGE", 1)
    fleet.running()
    waiting, known = in_line(fleet, 3), {}
    member = (fleet.team, fleet.me.user)
    first = load(fleet, known=known)
    assert (ids(first), first.read[member], len(first.snapshot.unread)) == (waiting[:1], 1, 1)
    with counted(fleet.store) as statements:
        second = load(fleet, known=known, so_far=first)
    assert (ids(second), second.read[member], len(second.snapshot.unread)) == (waiting[:2], 2, 1)
    third = load(fleet, known=known, so_far=second)
    assert (ids(third), third.read[member], third.snapshot.unread) == (waiting, 3, frozenset())
    assert len([one for one, _ in statements.selects if "jobs.spec" in one]) == 1, "of the job that is new"


def test_nothing_but_its_place_is_read_of_a_job_that_was_read_before_and_of_attempts_that_there_were_none(
    fleet: Fleet,
) -> None:
    known = {}
    in_line(fleet, 2)
    load(fleet, known=known)
    with counted(fleet.store) as statements:
        load(fleet, known=known)
    read = " ".join(statement for statement, _ in statements.selects)
    assert "jobs.spec" not in read
    assert "attempts.trained" not in read


@pytest.mark.any_database
def test_jobs_of_members_that_are_short_are_left_out(fleet: Fleet) -> None:
    (job,) = in_line(fleet, 1)
    other = World(fleet.store)
    of_other = other.job().id
    for kind in ("member", "team"):
        assert ids(load(fleet, short_accounts=[fleet.account(kind).id])) == [of_other]
    assert ids(load(fleet, short_accounts=[fleet.account("job", fleet.job_row(job)).id])) == [job, of_other]


def test_a_job_that_is_about_to_leave_the_queue_is_not_in_it(fleet: Fleet) -> None:
    leaving, staying = in_line(fleet, 2)
    fleet.alter(JobRow, JobRow.id == leaving, desired_state="stop")
    loaded = load(fleet)
    assert (ids(loaded), loaded.snapshot.unread) == ([staying], frozenset())


def test_a_job_whose_spec_cannot_be_read_is_left_out_and_said(fleet: Fleet) -> None:
    damaged, other = in_line(fleet, 2)
    fleet.alter(JobRow, JobRow.id == damaged, spec={"resources": 1})
    loaded = load(fleet)
    assert (ids(loaded), list(loaded.snapshot.unreadable)) == ([other], [damaged])


def test_an_attempt_that_launched_nothing_is_the_next_one_too(fleet: Fleet) -> None:
    job = fleet.start()
    fleet.write(launches.record_refusal, fleet.call(fleet.ids(job)[0]), RefusalKind.CAPACITY, "full")
    fleet.retry(job, "capacity")
    (queued,) = load(fleet).snapshot.queue
    assert (queued.attempt, queued.reopened) == (1, True)


def test_an_attempt_that_is_not_closed_yet_delays_nothing(fleet: Fleet) -> None:
    """How long the next one waits counts from its end, which is not known."""
    job, _ = fleet.running()
    fleet.end_attempt(job, "machine_lost")
    fleet.alter(AttemptRow, AttemptRow.job == job, closed_at=None)
    assert load(fleet).snapshot.queue[0].not_before == 0


@pytest.mark.parametrize(("cap", "has"), [({"max_jobs": 5}, (1, 0)), ({"max_gpus": 5}, (1, 0)), ({}, (0, 0))])
def test_what_runs_is_counted_where_a_cap_depends_on_it(
    fleet: Fleet, cap: dict[str, int], has: tuple[int, int]
) -> None:
    fleet.running()
    team = fleet.account("team").id
    caps = {"max_jobs": None, "max_gpus": None} | cap
    fleet.write(ledger.set_concurrency, team, **caps, actor="ann", reason="")
    balance = load(fleet).snapshot.balances[team]
    assert (balance.jobs, balance.gpus) == has
    assert (balance.max_jobs, balance.max_gpus) == (caps["max_jobs"], caps["max_gpus"])


@pytest.mark.parametrize("why", ["a guaranteed rate", "a time limit", None])
def test_jobs_that_run_are_read_if_a_guaranteed_rate_or_a_time_limit_depends_on_them(
    fleet: Fleet, why: str | None
) -> None:
    running, _ = fleet.running()
    fleet.job(**({"limits": {"time": "1h"}} if why == "a time limit" else {}))
    if why == "a guaranteed rate":
        fleet.write(ledger.set_guaranteed_rate, fleet.account("team").id, 1_000_000, actor="ann", reason="")
    assert [one.job for one in load(fleet).snapshot.running] == ([running] if why else [])


# Jobs with a deadline


def with_deadline(fleet: Fleet, market: str = "wait") -> UUID:
    """A queued job with a deadline, for which this market was decided."""
    now = fleet.clock.now
    plan = DeadlinePlan(now, now + 100 * S, "local", "local.cpu", 1, S, S, S, 5, "time_limit")
    case = DeadlineCase(plan, now, "wait", "", S, S, S, Seen(), Seen(), 2.0, 1, 1, None, S)
    wanted = spec.parse({"recipe": "digits/quickstart", "limits": {"deadline": "100s"}})
    job = fleet.store.write(lambda db: jobs.submit(db, fleet.me, wanted, min_hold=0, deadline=plan)).job.id
    fleet.alter(DeadlineRow, DeadlineRow.job == job, market=market, zone="", inputs=case.as_json())
    fleet.clock.pass_(1)
    return job


@pytest.mark.any_database
def test_a_job_that_must_start_now_is_read_once_wherever_it_is_in_the_queue(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "PAGE", 1)
    first = with_deadline(fleet, "on_demand")
    second, _waits, urgent = in_line(fleet, 1)[0], with_deadline(fleet), with_deadline(fleet, "on_demand")
    leaving = with_deadline(fleet, "on_demand")
    fleet.alter(JobRow, JobRow.id == leaving, desired_state="stop")
    page = load(fleet)
    assert ids(page) == [first, urgent]
    assert ids(load(fleet, so_far=page)) == [first, second, urgent]


@pytest.mark.any_database
def test_a_mark_changes_with_attempts_that_close_and_decisions_about_deadlines_that_are_open(fleet: Fleet) -> None:
    running, _ = fleet.running()
    assert not fleet.read(queue.load_mark).queued
    first, second = with_deadline(fleet), with_deadline(fleet)
    fleet.alter(DeadlineRow, DeadlineRow.job == first, changes=2)
    fleet.alter(DeadlineRow, DeadlineRow.job == second, changes=3)
    mark = fleet.read(queue.load_mark)
    assert (mark.queued, mark.attempts, mark.deadlines) == (True, 1, 5)
    fleet.write(deadlines.close_deadline, second)
    fleet.retry(running)
    mark = fleet.read(queue.load_mark)
    assert (mark.queued, mark.attempts, mark.deadlines) == (True, 0, 2)


# Why jobs wait


def test_waits_are_those_that_queued_jobs_have(fleet: Fleet) -> None:
    running, _ = fleet.running()
    waits, other, leaving = in_line(fleet, 3)
    fleet.alter(JobRow, JobRow.id.in_([running, waits, leaving]), wait_reason=STORED[0], wait_detail=STORED[1])
    fleet.alter(JobRow, JobRow.id == leaving, desired_state="stop")
    loaded = load(fleet)
    assert loaded.waits == {waits: STORED}
    assert loaded.changed([Wait(waits, UNANSWERED), Wait(other, UNANSWERED)]) == [Wait(other, UNANSWERED)]
    assert loaded.changed([Wait(waits, InQueue())]) == [Wait(waits, InQueue())]


def test_a_wait_is_recorded_with_the_jobs_that_are_still_queued(fleet: Fleet) -> None:
    first, second, left, bystander = in_line(fleet, 4)
    before = load(fleet)
    fleet.alter(JobRow, JobRow.id == left, state="launching")
    elsewhere = ProviderUnanswered("sim", "")
    waits = [Wait(first, UNANSWERED), Wait(second, elsewhere), Wait(left, UNANSWERED)]
    assert fleet.write(queue.apply_waits, waits, before.waits, before.mark.plan_version)
    stored = [fleet.job_row(job).wait_detail for job in (first, second, left, bystander)]
    assert stored == [UNANSWERED.as_json(), elsewhere.as_json(), None, None]
    assert [row.job for row in fleet.events(WaitChange.kind)] == sorted([first, second])
    again = load(fleet)
    assert not fleet.write(queue.apply_waits, [Wait(first, elsewhere)], again.waits, before.mark.plan_version)
    assert fleet.job_row(first).wait_detail == UNANSWERED.as_json(), "another plan came first"
    assert fleet.write(queue.apply_waits, [Wait(first, elsewhere)], again.waits, again.mark.plan_version)
    assert fleet.job_row(first).wait_detail == elsewhere.as_json()
    assert len(fleet.events(WaitChange.kind)) == 2, "it waits for the same"

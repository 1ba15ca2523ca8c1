# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import pytest
from shoestring_core.errors import BudgetExceeded, InvalidState, NotFound, StaleTransition
from shoestring_core.states import JOB_TRANSITIONS, DesiredState, EndReason, JobState, StopReason
from shoestring_core.store import job_search, jobs, ledger
from shoestring_core.store.tables import JobRow
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording.jobs import RetryOf, Submitted
from shoestring_core.wording.waits import RetryDelayed
from sqlalchemy import exc, select, update

from tests.core.world import World
from tests.servers import PATIENCE_S

J = JobState

# Submitting


def test_a_submitted_job_is_queued_with_its_resolved_spec_account_and_event(world: World) -> None:
    hints = []
    world.store.on_commit.append(lambda committed: hints.append(committed.tick_requested))
    job = world.job("3.00", name="first", tags={"week": 3})
    assert (job.state, job.desired_state, job.attempt, job.generation, job.name) == ("queued", "run", 0, 0, "first")
    assert job.spec["limits"]["cost"] == "3.00"
    assert job.spec["recipe"] == "digits/quickstart@1"
    account = world.account("job", job)
    assert (account.limit_micro, account.level) == (3_000_000, 3)
    (event,) = world.events("job")
    assert (event.job, event.actor, event.data) == (job.id, world.me.user_name, {"from": None, "to": "queued"})
    assert hints == [True]


@pytest.mark.parametrize("level", ["member", "team", "org"])
def test_a_job_whose_limit_is_above_a_limit_on_its_path_is_refused(world: World, level: str) -> None:
    world.limit(level, 2_000_000)
    with pytest.raises(BudgetExceeded) as refused:
        world.job("2.01")
    assert refused.value.fields["short_by"] == "0.01"
    assert "limits.cost is $2.01" in refused.value.message
    assert "2.00" in (refused.value.hint or "")
    assert world.job("2.00").state == J.QUEUED
    assert world.job().state == J.QUEUED


def test_a_job_whose_first_hold_is_above_a_limit_is_refused(world: World) -> None:
    world.limit("team", 1000)
    with pytest.raises(BudgetExceeded, match="first machines need"):
        world.job(min_hold=1001)
    with pytest.raises(BudgetExceeded, match=r"limits\.cost"):
        world.job("0.0005", min_hold=501)
    assert world.job(min_hold=1000).state == J.QUEUED


def test_a_job_that_only_has_to_wait_for_budget_is_queued(world: World) -> None:
    world.limit("team", 1000)
    world.hold(world.job(), 1000)
    assert world.job("0.001", min_hold=1000).state == J.QUEUED
    world.limit("team", 1000)


def test_a_refused_job_leaves_nothing_behind(world: World) -> None:
    world.limit("team", 1000)
    with pytest.raises(BudgetExceeded):
        world.job(min_hold=1001)
    with world.store.read() as db:
        assert job_search.search(db, world.team).jobs == []
    assert world.events("job") == []


# Moving


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("before", list(JobState))
def test_only_the_table_moves_a_job(world: World, before: JobState) -> None:
    for to in JobState:
        job = put(world, world.job(), before)
        events = len(world.events("job"))
        if to in JOB_TRANSITIONS[before]:
            assert move(world, job, to).state == to
            data = world.events("job")[-1].data
            assert (data["from"], data["to"]) == (before, to)
        else:
            with pytest.raises(StaleTransition):
                move(world, job, to)
            assert state(world, job) == before
            assert len(world.events("job")) == events


@pytest.mark.parametrize("column", ["attempt", "generation"])
def test_a_stale_decision_moves_nothing(world: World, column: str) -> None:
    seen = put(world, world.job(), J.RUNNING)
    world.store.write(lambda db: db.execute(update(JobRow).where(JobRow.id == seen.id).values({column: 7})))
    with pytest.raises(StaleTransition):
        move(world, seen, J.QUEUED)
    assert state(world, seen) == J.RUNNING


def test_a_job_that_was_stopped_meanwhile_is_not_launched(world: World) -> None:
    seen = world.job()
    world.store.write(lambda db: jobs.stop(db, seen.id, "ann", "pause"))
    world.store.write(lambda db: jobs.resume(db, seen.id, "ann"))
    world.store.write(
        lambda db: db.execute(update(JobRow).where(JobRow.id == seen.id).values(desired_state=DesiredState.STOP))
    )
    with pytest.raises(StaleTransition):
        move(world, seen, J.LAUNCHING)


def test_ended_needs_a_reason(world: World) -> None:
    job = world.job()
    with pytest.raises(exc.IntegrityError):
        world.store.write(lambda db: jobs.transition(db, job, J.ENDED, actor="test", reason=Submitted()))
    assert state(world, job) == J.QUEUED


def test_moves_set_their_times_and_clear_the_wait_reason(world: World) -> None:
    job = world.job()
    world.store.write(
        lambda db: db.execute(
            update(JobRow).values(wait_reason="capacity", wait_detail=RetryDelayed().as_json(), queued_at=1)
        )
    )
    job = move(world, read(world, job), J.LAUNCHING)
    assert (job.wait_reason, job.wait_detail, job.started_at) == (None, None, None)
    started = move(world, job, J.RUNNING).started_at
    assert started is not None
    queued = move(world, read(world, job), J.QUEUED)
    assert queued.queued_at > 1
    running = move(world, move(world, queued, J.LAUNCHING), J.RUNNING)
    assert running.started_at == started
    assert move(world, running, J.ENDED).ended_at is not None


def test_of_two_concurrent_moves_of_a_job_one_succeeds(world: World) -> None:
    job = world.job()
    start, outcomes = threading.Barrier(4), []

    def launch() -> None:
        start.wait(timeout=PATIENCE_S)
        try:
            outcomes.append(move(world, job, J.LAUNCHING))
        except StaleTransition:
            outcomes.append(None)

    threads = [threading.Thread(target=launch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(outcome is not None for outcome in outcomes) == 1
    assert len(outcomes) == 4
    assert len(world.events("job")) == 2


# Stopping, resuming, retrying


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(
    ("before", "mode", "after", "desired"),
    [
        (J.QUEUED, "stop", J.ENDED, "stop"),
        (J.PAUSED, "stop", J.ENDED, "stop"),
        (J.AWAITING_APPROVAL, "stop", J.ENDED, "stop"),
        (J.LAUNCHING, "stop", J.STOPPING, "stop"),
        (J.RUNNING, "stop", J.STOPPING, "stop"),
        (J.QUEUED, "pause", J.PAUSED, "pause"),
        (J.LAUNCHING, "pause", J.STOPPING, "pause"),
        (J.RUNNING, "pause", J.STOPPING, "pause"),
    ],
)
def test_a_stop_takes_effect_at_once_and_only_once(world: World, before: JobState, mode: str, after: JobState, desired: str) -> None:  # fmt: skip # noqa: E501
    job = put(world, world.job(), before)
    for _ in range(3):
        stopped = world.store.write(lambda db: jobs.stop(db, job.id, "ann", mode))
        assert (stopped.state, stopped.desired_state, stopped.stop_reason) == (after, desired, "user")
    assert stopped.end_reason == ("user_stop" if after is J.ENDED else None)
    assert len(world.events("job")) == 2
    assert world.events("job")[-1].actor == "ann"


@pytest.mark.parametrize(
    ("why", "end"),
    [("user", "user_stop"), ("budget", "budget"), ("time_limit", "time_limit"), ("goal", "goal_reached")],
)
def test_a_stop_records_its_reason(world: World, why: str, end: str) -> None:
    job = world.job()
    assert world.store.write(lambda db: jobs.stop(db, job.id, "worker", stop_reason=why)).end_reason == end
    running = put(world, world.job(), J.RUNNING)
    assert world.store.write(lambda db: jobs.stop(db, running.id, "worker", stop_reason=why)).stop_reason == why


def test_a_stop_overrides_a_pause_but_not_the_other_way_round(world: World) -> None:
    job = put(world, world.job(), J.RUNNING)
    world.store.write(lambda db: jobs.stop(db, job.id, "worker", "pause", stop_reason=StopReason.BUDGET))
    stopped = world.store.write(lambda db: jobs.stop(db, job.id, "ann"))
    assert (stopped.state, stopped.desired_state, stopped.stop_reason) == (J.STOPPING, "stop", "user")
    for _ in range(2):
        with pytest.raises(InvalidState):
            world.store.write(lambda db: jobs.stop(db, job.id, "ann", "pause"))
        put(world, job, J.ENDED)


def test_a_paused_job_queues_again(world: World) -> None:
    job = world.job()
    world.store.write(lambda db: jobs.stop(db, job.id, "worker", "pause", stop_reason=StopReason.BUDGET))
    for _ in range(2):
        resumed = world.store.write(lambda db: jobs.resume(db, job.id, "ann"))
        assert (resumed.state, resumed.desired_state, resumed.stop_reason) == (J.QUEUED, "run", "")
    running = put(world, world.job(), J.RUNNING)
    world.store.write(lambda db: jobs.stop(db, running.id, "ann", "pause"))
    resumed = world.store.write(lambda db: jobs.resume(db, running.id, "ann"))
    assert (resumed.state, resumed.desired_state) == (J.STOPPING, "run")


def test_a_job_that_is_ending_or_has_ended_cannot_be_resumed(world: World) -> None:
    job = put(world, world.job(), J.RUNNING)
    world.store.write(lambda db: jobs.stop(db, job.id, "ann"))
    for _ in range(2):
        with pytest.raises(InvalidState) as refused:
            world.store.write(lambda db: jobs.resume(db, job.id, "ann"))
        assert refused.value.hint
        put(world, job, J.ENDED)


def test_a_retry_is_a_new_job_from_the_stored_spec_and_the_last_checkpoint(world: World) -> None:
    old, checkpoint = world.job("3.00", name="first", params={"epochs": 2}), uuid7()
    world.store.write(lambda db: db.execute(update(JobRow).values(checkpoint=checkpoint)))
    put(world, old, J.ENDED, end_reason=EndReason.NAN)
    new = retry(world, old)
    assert new.id != old.id
    assert (new.state, new.spec, new.name) == (J.QUEUED, read(world, old).spec, "first")
    assert (new.retried_from, new.checkpoint, new.generation) == (old.id, checkpoint, 0)
    assert world.account("job", new).limit_micro == 3_000_000
    assert world.events("job")[-1].reason == RetryOf(str(old.id)).as_json()


def test_a_retry_of_a_successful_job_starts_over(world: World) -> None:
    old = world.job()
    world.store.write(lambda db: db.execute(update(JobRow).values(checkpoint=uuid7())))
    put(world, old, J.ENDED, end_reason=EndReason.SUCCEEDED)
    assert retry(world, old).checkpoint is None


def test_only_an_ended_job_of_the_own_team_is_retried(world: World) -> None:
    with pytest.raises(InvalidState):
        retry(world, world.job())
    stranger = World(world.store)
    job = put(stranger, stranger.job(), J.ENDED)
    with pytest.raises(NotFound):
        retry(world, job)


# Finding


def test_another_teams_job_is_not_found(world: World) -> None:
    stranger = World(world.store)
    mine, theirs = world.job(), stranger.job()
    with world.store.read() as db:
        assert jobs.get(db, world.team, mine.id).id == mine.id
        for missing in (theirs.id, uuid7()):
            with pytest.raises(NotFound) as refused:
                jobs.get(db, world.team, missing)
            assert refused.value.message == "There is no such job."
        assert [job.id for job in job_search.search(db, world.team).jobs] == [mine.id]


def put(world: World, job: JobRow, where: JobState, end_reason: EndReason = EndReason.NAN) -> JobRow:
    """Set a state by hand, for the tests of what moves a job from there."""
    end = end_reason if where is J.ENDED else None
    moved = update(JobRow).where(JobRow.id == job.id).values(state=where, end_reason=end)
    world.store.write(lambda db: db.execute(moved))
    return read(world, job)


def move(world: World, job: JobRow, to: JobState) -> JobRow:
    columns = {"end_reason": EndReason.NAN} if to is J.ENDED else {}
    return world.store.write(lambda db: jobs.transition(db, job, to, actor="test", reason=Submitted(), **columns))


def read(world: World, job: JobRow) -> JobRow:
    with world.store.read() as db:
        return db.sql.scalars(select(JobRow).where(JobRow.id == job.id)).one()


def state(world: World, job: JobRow) -> str:
    return read(world, job).state


def retry(world: World, job: JobRow) -> JobRow:
    new = world.store.write(lambda db: jobs.retry(db, world.me, job.id, min_hold=0)).job
    with world.store.read() as db:
        assert ledger.job_account(db, new.id).parent == world.account("member").id
    return new

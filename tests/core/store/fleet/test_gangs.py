# SPDX-License-Identifier: Apache-2.0
"""Generations and attempts change only by decisions that still hold, and end with all of their machines."""

from __future__ import annotations

from dataclasses import asdict
from itertools import product
from typing import Any
from uuid import UUID

import pytest
from shoestring_core.decide import failures
from shoestring_core.decide.offers import Hardware
from shoestring_core.decide.timeouts import S
from shoestring_core.states import EndReason
from shoestring_core.store import jobs
from shoestring_core.store.fleet import agents, gangs
from shoestring_core.store.tables import AttemptRow, GenerationRow, JobRow, MachineRow
from shoestring_core.store.transactions import Write
from shoestring_core.wording import attempts
from shoestring_core.wording.jobs import BudgetRaised
from shoestring_core.wording.machines import NotReadyInTime

from tests.core.world import LAUNCHING, NEVER_LAUNCHED, PLANNED, RUNNING, TERMINATED, TERMINATING, Fleet, World

RESTART = failures.Restart(attempts.RankKilled(0))
LOST = failures.EndAttempt("machine_lost", attempts.MachineLost(0, None))
CAPACITY = failures.EndAttempt("capacity", attempts.TooFewMachines())
ERROR = failures.EndJob(EndReason.USER_CODE, attempts.TrainingFailed(0, "user_code", "ValueError: no"))


def course(fleet: Fleet, job: UUID, attempt: int = 1) -> tuple[str, int, str, str | None]:
    """The job's state and generation, and the state and reason of the attempt."""
    row, opened = fleet.job_row(job), fleet.attempt_row(job, attempt)
    return row.state, row.generation, opened.state, opened.reason


# Decisions


def test_a_decision_about_another_generation_changes_nothing(fleet: Fleet) -> None:
    job, _ = fleet.running(nodes=2)
    fleet.restart(job)
    for generation, action in product([None, 1, 3], [RESTART, LOST, ERROR]):
        assert not fleet.write(gangs.apply_action, job, 1, generation, action)
        assert course(fleet, job) == ("running", 2, "open", None)
        assert fleet.generation_row(job, 2).state == "formed"


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(
    "why", ["the job is stopping", "the job is to pause", "the attempt closes", "another attempt is open"]
)
def test_a_decision_about_an_attempt_that_is_no_longer_wanted_changes_nothing(fleet: Fleet, why: str) -> None:
    job, _ = fleet.running()
    if why == "the job is stopping":
        fleet.write(jobs.stop, job, "ann")
    elif why == "the job is to pause":
        fleet.alter(JobRow, JobRow.id == job, desired_state="pause")
    elif why == "the attempt closes":
        fleet.write(gangs.close_attempt, job, 1, "stop")
    else:
        fleet.alter(JobRow, JobRow.id == job, attempt=2)
    before = course(fleet, job)
    for action in (RESTART, LOST, ERROR):
        assert not fleet.write(gangs.apply_action, job, 1, 1, action)
        assert course(fleet, job) == before


def test_doing_nothing_changes_nothing(fleet: Fleet) -> None:
    job, _ = fleet.running()
    assert not fleet.write(gangs.apply_action, job, 1, 1, failures.NoAction())
    assert course(fleet, job) == ("running", 1, "open", None)


def test_ranks_restart_in_the_next_generation_on_the_same_machines(fleet: Fleet) -> None:
    job, machines = fleet.running(nodes=2)
    bystander, _ = fleet.running()
    fleet.clock.pass_(10)
    assert fleet.requests_tick(lambda: fleet.write(gangs.apply_action, job, 1, 1, RESTART))
    first, second = fleet.generation_row(job, 1), fleet.generation_row(job, 2)
    assert (first.state, first.ended_at, first.end_reason) == ("ended", fleet.clock.now, RESTART.reason.as_json())
    assert (second.state, second.attempt, second.opened_at) == ("forming", 1, fleet.clock.now)
    assert (second.world_size, second.start_step) == (2, 0)
    assert [(one.node_rank, one.machine) for one in fleet.member_rows(job, 2)] == list(enumerate(machines))
    assert course(fleet, job) == ("running", 2, "open", None)
    told = [(one.generation, one.attempt, one.data["state"], one.reason) for one in fleet.events("generation")]
    assert told[-1] == (2, 1, "forming", RESTART.reason.as_json())
    assert fleet.generation_row(bystander).state == "formed"


def test_a_gang_of_fixed_size_restarts_with_a_machine_that_is_about_to_be_preempted(fleet: Fleet) -> None:
    job, machines = fleet.running(nodes=2)
    fleet.write(agents.record_notice, machines[1], fleet.clock.now + 120 * S)
    assert fleet.write(gangs.apply_action, job, 1, 1, RESTART)
    assert [one.machine for one in fleet.member_rows(job, 2)] == machines


@pytest.mark.parametrize(
    ("gpus", "params", "procs", "ranks"),
    [
        ([None, None], {}, None, 1),  # nothing is known of the machines' hardware
        ([0, 0], {}, None, 1),
        ([4, 4], {}, None, 4),
        ([4, 4], {}, 2, 2),
        ([8, 4], {}, None, 4),  # as many on each
        ([8, 8], {"batch_size": 6}, None, 3),  # no more than there are samples for
        ([8, 8], {"batch_size": 16, "batch_size_schedule": "0:0.5"}, None, 4),
    ],
)
def test_each_machine_runs_a_rank_for_each_of_its_gpus(
    fleet: Fleet, gpus: list[int | None], params: dict[str, Any], procs: int | None, ranks: int
) -> None:
    job, machines = fleet.running(2)
    stored = fleet.job_row(job).spec
    changed = {"resources": stored["resources"] | {"procs": procs}, "params": stored["params"] | params}
    fleet.alter(JobRow, JobRow.id == job, spec=stored | changed)
    for machine, count in zip(machines, gpus, strict=True):
        hardware = None if count is None else asdict(Hardware(4, 16384, "T4", count, 16384))
        fleet.alter(MachineRow, MachineRow.id == machine, offered_hardware=hardware)
    fleet.restart(job)
    assert [member.nproc for member in fleet.member_rows(job, 2)] == [ranks, ranks]
    assert fleet.generation_row(job, 2).world_size == 2 * ranks


def test_the_error_of_a_running_job_ends_it(fleet: Fleet) -> None:
    job, _ = fleet.running()
    bystander, _ = fleet.running()
    fleet.clock.pass_(10)
    assert fleet.write(gangs.apply_action, job, 1, 1, ERROR)
    row, attempt = fleet.job_row(job), fleet.attempt_row(job)
    assert (row.state, row.end_reason, row.end_detail, row.ended_at) == (
        "ended", "user_code", ERROR.detail.as_json(), fleet.clock.now,
    )  # fmt: skip
    assert (attempt.state, attempt.reason, attempt.closed_at, attempt.trained) == (
        "closing", "user_code", fleet.clock.now, False,
    )  # fmt: skip
    assert fleet.generation_row(job).state == "formed", "a checkpoint that is being uploaded still counts"
    assert course(fleet, bystander) == ("running", 1, "open", None)
    told = [(one.data["from"], one.data["to"]) for one in fleet.events("job") if one.job == job]
    assert told[-1] == ("running", "ended"), "in one move"


def test_the_error_of_a_launching_job_ends_it(fleet: Fleet) -> None:
    job = fleet.start()
    assert fleet.write(gangs.apply_action, job, 1, None, ERROR)
    assert course(fleet, job) == ("ended", 0, "closing", "user_code")
    moves = [(one.data["from"], one.data["to"]) for one in fleet.events("job") if one.job == job]
    assert moves[-2:] == [("launching", "queued"), ("queued", "ended")]


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(("action", "wait"), [(LOST, "terminating"), (CAPACITY, "capacity")])
def test_a_job_whose_attempt_ends_is_queued_at_its_old_place(
    fleet: Fleet, action: failures.EndAttempt, wait: str
) -> None:
    job, _ = fleet.running()
    queued_at = fleet.job_row(job).queued_at
    fleet.clock.pass_(10)
    assert fleet.requests_tick(lambda: fleet.write(gangs.apply_action, job, 1, 1, action))
    row = fleet.job_row(job)
    assert (row.state, row.queued_at, row.wait_reason) == ("queued", queued_at, wait)
    assert row.wait_detail == action.detail.as_json()
    assert course(fleet, job) == ("queued", 1, "closing", action.reason)


# Retries


def another_attempt(fleet: Fleet, job: UUID, *, launches: bool = True, step: int | None = None) -> int:
    """The next attempt of a queued job, which may train; its number."""
    fleet.open_attempt(job)
    if launches:
        fleet.launch(job)
        fleet.form(job)
    if step is not None:
        fleet.train(job, step)
    return fleet.job_row(job).attempt


def lose(fleet: Fleet, job: UUID, action: failures.EndAttempt = LOST) -> str:
    """The attempt ends by a loss; the job's state then."""
    row = fleet.job_row(job)
    opened = fleet.read(lambda db: db.sql.get(GenerationRow, (job, row.generation)))
    generation = row.generation if opened is not None and opened.attempt == row.attempt else None
    assert fleet.write(gangs.apply_action, job, row.attempt, generation, action)
    for machine in fleet.machine_rows(job):
        if machine.state == PLANNED:
            fleet.alter(MachineRow, MachineRow.id == machine.id, state=NEVER_LAUNCHED)
    fleet.finish_attempt(job)
    fleet.clock.pass_(120)
    return fleet.job_row(job).state


def test_a_job_ends_when_its_retries_are_exhausted(fleet: Fleet) -> None:
    job = fleet.job(retry={"max": 2}, resources={"nodes": 1}).id
    states = []
    for step in (5, None, 0, 6, 7):
        number = another_attempt(fleet, job, step=step)
        states.append(lose(fleet, job))
        assert fleet.attempt_row(job, number).trained == bool(step)
    assert states == ["queued"] * 4 + ["ended"], "an attempt without a step is no retry"
    row = fleet.job_row(job)
    assert (row.end_reason, row.end_detail) == ("infrastructure", attempts.RetriesExhausted(3, 2).as_json())
    assert fleet.attempt_row(job, 5).reason == "machine_lost"


def test_a_job_ends_after_eight_attempts_in_a_row_that_launched_machines_and_trained_nothing(fleet: Fleet) -> None:
    job = fleet.job(retry={"max": 100}, resources={"nodes": 1}).id
    for _ in range(7):
        another_attempt(fleet, job)
        assert lose(fleet, job) == "queued"
    another_attempt(fleet, job, step=3)
    assert lose(fleet, job) == "queued"
    another_attempt(fleet, job, launches=False)
    assert lose(fleet, job, CAPACITY) == "queued"
    for _ in range(7):
        another_attempt(fleet, job)
        assert lose(fleet, job) == "queued"
    another_attempt(fleet, job)
    assert lose(fleet, job) == "ended"
    row = fleet.job_row(job)
    assert (row.end_reason, row.attempt) == ("infrastructure", 16)
    assert row.end_detail == attempts.NeverTrained(8, LOST.detail).as_json()


@pytest.mark.any_database
def test_a_jobs_failed_attempts_are_counted_without_those_of_other_jobs(fleet: Fleet) -> None:
    eighth, _ = fleet.running()
    job = fleet.job(retry={"max": 100}, resources={"nodes": 1}).id

    def others_eighth_attempt(db: Write) -> None:
        old = {"state": "closed", "plan": {}, "plan_version": 0, "opened_at": db.now}
        db.insert_new(AttemptRow, job=eighth, number=8, **old)

    fleet.write(others_eighth_attempt)
    fleet.alter(MachineRow, MachineRow.job == eighth, attempt=8)
    fleet.alter(GenerationRow, GenerationRow.job == eighth, attempt=8)
    for _ in range(7):
        another_attempt(fleet, job)
        assert lose(fleet, job) == "queued"
    assert another_attempt(fleet, job, launches=False) == 8
    assert lose(fleet, job, CAPACITY) == "queued", "it launched nothing"


def test_reasons_of_other_jobs_attempts_do_not_count(fleet: Fleet) -> None:
    other = fleet.job(retry={"max": 0}, resources={"nodes": 1}).id
    job = fleet.job(retry={"max": 1}, resources={"nodes": 1}).id
    another_attempt(fleet, job, step=5)
    assert lose(fleet, job) == "queued"
    another_attempt(fleet, other, step=5)
    assert fleet.write(gangs.close_attempt, other, 1, "stop")
    another_attempt(fleet, job, step=6)
    assert lose(fleet, job) == "ended"


def test_steps_of_other_jobs_are_none_of_this_one(fleet: Fleet) -> None:
    other, _ = fleet.running()
    fleet.train(other, 3)
    job = fleet.job(retry={"max": 100}, resources={"nodes": 1}).id
    states = []
    for _ in range(8):
        another_attempt(fleet, job)
        states.append(lose(fleet, job))
    assert states == ["queued"] * 7 + ["ended"]


def test_values_of_steps_that_are_done_again_are_not_shown(fleet: Fleet) -> None:
    job, _ = fleet.running()
    fleet.alter(JobRow, JobRow.id == job, latest={"train/loss": 0.5, "system/cpu": 0.9})
    fleet.restart(job)
    assert fleet.job_row(job).latest == {"system/cpu": 0.9}


def test_three_machines_in_a_row_that_do_not_boot_end_a_job_and_three_of_many_do_not(fleet: Fleet) -> None:
    job = fleet.job(retry={"max": 100}, resources={"nodes": 1}).id
    boot = failures.EndAttempt("boot", attempts.MachineLost(0, None))
    for action, launched in ((boot, True), (LOST, True), (boot, True), (CAPACITY, False), (boot, True)):
        another_attempt(fleet, job, launches=launched)
        assert lose(fleet, job, action) == "queued", "two in a row: a launch that was refused is none"
    another_attempt(fleet, job)
    assert lose(fleet, job, boot) == "ended"
    assert fleet.job_row(job).end_detail == attempts.NeverTrained(3, boot.detail).as_json()


def test_a_job_that_wants_no_retry_ends_with_its_attempt(fleet: Fleet) -> None:
    job = fleet.job(retry={"on": ["capacity"]}, resources={"nodes": 1}).id
    another_attempt(fleet, job)
    assert lose(fleet, job) == "ended"
    assert fleet.job_row(job).end_reason == "infrastructure"


# Attempts wound down


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(("start", "last", "trained"), [(0, None, False), (0, 0, False), (4, 4, False), (4, 5, True)])
def test_an_attempt_has_trained_if_a_generation_of_it_did_a_step(
    fleet: Fleet, start: int, last: int | None, trained: bool
) -> None:
    job, _ = fleet.running()
    other, _ = fleet.running()
    fleet.train(other, 50)
    fleet.alter(GenerationRow, GenerationRow.job == job, start_step=start, last_step=last)
    assert fleet.requests_tick(lambda: fleet.write(gangs.apply_action, job, 1, 1, LOST))
    assert fleet.attempt_row(job).trained == trained


def test_an_attempt_is_closed_once_and_for_its_first_reason(fleet: Fleet) -> None:
    job, _ = fleet.running()
    bystander, _ = fleet.running()
    assert fleet.write(gangs.close_attempt, job, 1, "stop")
    closed_at = fleet.clock.now
    fleet.clock.pass_(10)
    assert not fleet.write(gangs.close_attempt, job, 1, "machine_lost")
    row = fleet.attempt_row(job)
    assert (row.state, row.reason, row.closed_at) == ("closing", "stop", closed_at)
    assert fleet.attempt_row(bystander).state == "open"


def test_an_attempt_that_has_trained_stays_so(fleet: Fleet) -> None:
    job, _ = fleet.running()
    fleet.alter(AttemptRow, AttemptRow.job == job, trained=True)
    fleet.write(gangs.close_attempt, job, 1, "stop")
    assert fleet.attempt_row(job).trained


def test_only_a_stopping_job_begins_to_stop(fleet: Fleet) -> None:
    job, _ = fleet.running()
    assert not fleet.write(gangs.begin_stopping, job)
    assert course(fleet, job) == ("running", 1, "open", None)
    fleet.write(jobs.stop, job, "ann")
    assert fleet.write(gangs.begin_stopping, job)
    assert course(fleet, job) == ("stopping", 1, "closing", "stop")
    assert not fleet.write(gangs.begin_stopping, job)


def test_an_attempt_is_not_over_while_a_machine_of_it_may_run(fleet: Fleet) -> None:
    job, (machine, other) = fleet.running(nodes=2)
    fleet.write(jobs.stop, job, "ann")
    fleet.write(gangs.begin_stopping, job)
    fleet.end(machine)
    for state in (PLANNED, LAUNCHING, RUNNING, TERMINATING):
        fleet.alter(MachineRow, MachineRow.id == other, state=state)
        assert not fleet.write(gangs.finish_attempt, job, 1)
        assert course(fleet, job) == ("stopping", 1, "closing", "stop")
    fleet.alter(MachineRow, MachineRow.id == other, state=TERMINATED, ended_at=1)
    assert fleet.write(gangs.finish_attempt, job, 1)


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(
    ("mode", "stop_reason", "state", "end_reason"),
    [
        ("stop", "user", "ended", "user_stop"),
        ("stop", "budget", "ended", "budget"),
        ("stop", "time_limit", "ended", "time_limit"),
        ("pause", "budget", "paused", None),
    ],
)
def test_a_stopping_job_becomes_what_it_was_stopped_for(
    fleet: Fleet, mode: str, stop_reason: str, state: str, end_reason: str | None
) -> None:
    running, _ = fleet.running()
    job, _ = fleet.running()
    fleet.write(jobs.stop, job, "ann", mode, stop_reason=stop_reason)
    fleet.write(gangs.begin_stopping, job)
    fleet.clock.pass_(5)
    fleet.finish_attempt(job)
    assert course(fleet, job) == (state, 1, "closed", "stop")
    ended = fleet.generation_row(job)
    assert (ended.state, ended.ended_at, ended.end_reason) == (
        "ended",
        fleet.clock.now,
        attempts.AttemptEnded().as_json(),
    )
    assert fleet.job_row(job).end_reason == end_reason
    assert course(fleet, running) == ("running", 1, "open", None)
    assert fleet.generation_row(running).state == "formed"
    assert not fleet.write(gangs.finish_attempt, job, 1)


def test_a_job_that_is_resumed_while_it_pauses_is_queued_when_its_machines_have_ended(fleet: Fleet) -> None:
    job, _ = fleet.running()
    fleet.write(jobs.stop, job, "ann", "pause")
    fleet.write(gangs.begin_stopping, job)
    fleet.write(jobs.resume, job, "ann")
    fleet.clock.pass_(5)
    fleet.finish_attempt(job)
    assert course(fleet, job) == ("queued", 1, "closed", "stop")


def test_an_attempt_that_was_not_wound_down_is_not_finished(fleet: Fleet) -> None:
    job, (machine,) = fleet.running()
    fleet.end(machine)
    assert not fleet.write(gangs.finish_attempt, job, 1)
    assert course(fleet, job) == ("running", 1, "open", None)
    assert fleet.generation_row(job).state == "formed"


def test_the_end_of_an_older_attempt_leaves_the_present_one_alone(fleet: Fleet) -> None:
    job, _ = fleet.running()
    lose(fleet, job)
    another_attempt(fleet, job)
    fleet.alter(AttemptRow, AttemptRow.job == job, AttemptRow.number == 1, state="closing")
    assert fleet.write(gangs.finish_attempt, job, 1)
    assert course(fleet, job, 1)[2] == "closed"
    assert course(fleet, job, 2) == ("running", 2, "open", None)
    assert fleet.generation_row(job, 2).state == "formed"


def test_the_end_of_an_older_attempt_does_not_end_a_stopping_job(fleet: Fleet) -> None:
    job, _ = fleet.running()
    lose(fleet, job)
    another_attempt(fleet, job)
    fleet.alter(AttemptRow, AttemptRow.job == job, AttemptRow.number == 1, state="closing")
    fleet.write(jobs.stop, job, "ann")
    assert fleet.write(gangs.finish_attempt, job, 1)
    assert fleet.job_row(job).state == "stopping"


# Rolling back


def test_a_generation_that_skips_steps_starts_from_a_checkpoint_before_them(fleet: Fleet) -> None:
    job, (machine,) = fleet.running()
    fleet.train(job, 30)
    for step in (10, 20, 30):
        fleet.commit(machine, 1, step)
    first, second, _ = fleet.checkpoint_rows(job)
    assert fleet.write(gangs.apply_action, job, 1, 1, failures.Restart(attempts.RankKilled(0), skip=(21, 22)))
    assert (fleet.generation_row(job, 2).start_step, fleet.generation_row(job, 2).start_checkpoint) == (20, second.id)
    assert (fleet.job_row(job).checkpoint, fleet.job_row(job).skipped_step_spans) == (second.id, [[21, 22]])
    assert fleet.write(gangs.apply_action, job, 1, 2, failures.Restart(attempts.RankKilled(0), skip=(20, 23)))
    assert (fleet.generation_row(job, 3).start_step, fleet.job_row(job).checkpoint) == (10, first.id)
    assert fleet.job_row(job).skipped_step_spans == [[21, 22], [20, 23]]


# Money again


def test_a_raised_budget_resumes_the_jobs_that_it_paused_and_no_others(fleet: Fleet) -> None:
    paused, by_user, pausing, stopped, running = (fleet.running()[0] for _ in range(5))
    stops = [(paused, "pause", "budget"), (by_user, "pause", "user"), (pausing, "pause", "budget")]
    for job, mode, reason in [*stops, (stopped, "stop", "budget")]:
        fleet.write(jobs.stop, job, "fleet", mode, stop_reason=reason)
        fleet.write(gangs.begin_stopping, job)
    for job in (paused, by_user):
        fleet.finish_attempt(job)
    ended, _ = fleet.running()
    over = {"state": "ended", "desired_state": "pause", "stop_reason": "budget", "end_reason": "user_code"}
    fleet.alter(JobRow, JobRow.id == ended, **over)
    stranger = World(fleet.store)
    foreign = stranger.account("team").id
    assert fleet.write(gangs.resume_jobs_paused_by_budget, foreign, "ann") == []
    leaf = fleet.account("job", fleet.job_row(pausing)).id
    assert fleet.write(gangs.resume_jobs_paused_by_budget, leaf, "ann") == [pausing]
    fleet.write(jobs.stop, pausing, "fleet", "pause", stop_reason="budget")
    team = fleet.account("team").id
    assert fleet.write(gangs.resume_jobs_paused_by_budget, team, "ann") == sorted([paused, pausing])
    states = [
        (fleet.job_row(job).state, fleet.job_row(job).desired_state) for job in (paused, by_user, pausing, stopped)
    ]
    assert states == [("queued", "run"), ("paused", "pause"), ("stopping", "run"), ("stopping", "stop")]
    assert fleet.job_row(running).state == "running"
    assert [one.reason for one in fleet.events("job") if one.job == paused][-1] == BudgetRaised().as_json()


# A gang that may lose machines


def elastic(fleet: Fleet) -> tuple[UUID, list[UUID]]:
    return fleet.running(nodes="2..4")


def test_an_elastic_gang_continues_with_the_machines_that_can(fleet: Fleet) -> None:
    job, machines = elastic(fleet)
    fleet.end(machines[1], "crashed")
    fleet.clock.pass_(5)
    assert fleet.write(gangs.apply_action, job, 1, 1, RESTART)
    assert [one.machine for one in fleet.member_rows(job, 2)] == [machines[0], machines[2], machines[3]]
    assert fleet.generation_row(job, 2).world_size == 3
    assert [fleet.machine_row(one).state for one in machines] == [RUNNING, TERMINATED, RUNNING, RUNNING]


def test_machines_that_are_excluded_are_terminated_and_do_not_join(fleet: Fleet) -> None:
    job, machines = elastic(fleet)
    action = failures.Restart(attempts.MachineNotReady(2), excluded=(2,))
    assert fleet.write(gangs.apply_action, job, 1, 1, action)
    assert [one.machine for one in fleet.member_rows(job, 2)] == [machines[0], machines[1], machines[3]]
    assert [fleet.machine_row(one).state for one in machines] == [RUNNING, RUNNING, TERMINATING, RUNNING]
    assert fleet.told("machine", machines[2])[-1][1] == NotReadyInTime().as_json()


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("lost", [3, 4])
def test_an_elastic_gang_with_too_few_machines_does_not_continue(fleet: Fleet, lost: int) -> None:
    job, machines = elastic(fleet)
    for machine in machines[:lost]:
        fleet.end(machine, "crashed")
    assert not fleet.write(gangs.apply_action, job, 1, 1, RESTART)
    assert course(fleet, job) == ("running", 1, "open", None)
    assert fleet.generation_row(job).state == "formed"


def test_time_passes_for_the_fleet_alone(fleet: Fleet) -> None:
    """What the tests of this folder rely on: every row has the test's time."""
    job, _ = fleet.running()
    fleet.clock.pass_(1)
    fleet.write(jobs.stop, job, "ann")
    assert [one.at for one in fleet.events("job")][-1] == fleet.clock.now
    assert fleet.clock.now % S == 0

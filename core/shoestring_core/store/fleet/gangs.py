# SPDX-License-Identifier: Apache-2.0
"""Generations and attempts: the machines that train together, from the first to the last of them."""

from __future__ import annotations

import sys
from collections.abc import Container
from typing import Any
from uuid import UUID

from sqlalchemy import exists, insert, or_, select, update

from shoestring_core.decide import failures, funding, nan_recovery, rendezvous, retries
from shoestring_core.decide.workload import processes_per_machine
from shoestring_core.spec import JobSpec
from shoestring_core.states import AttemptState, DesiredState, GenerationState, JobState, StopReason, WaitReason
from shoestring_core.store import checkpoints, jobs, ledger, metrics, transitions
from shoestring_core.store.fleet import active_attempts, observations, rows
from shoestring_core.store.tables import AttemptRow, CheckpointRow, GenerationRow, JobRow, MachineRow, MemberRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording import Reason, attempts
from shoestring_core.wording import jobs as job_reasons
from shoestring_core.wording.machines import NotReadyInTime


def open_generation(
    db: Write, job_id: UUID, attempt_number: int, reason: Reason,
    slots: Container[int] | None = None, skip: nan_recovery.Span | None = None,
) -> int:  # fmt: skip
    """The next generation, of all machines of the attempt or of those in `slots`; the one before is over. Returns its
    number.

    skip  steps to skip from now on: the job rolls back to a checkpoint before them

    The caller has claimed the job's row.
    """
    job = rows.lock_job(db, job_id)
    spec = JobSpec.from_stored(job.spec)
    number = job.generation + 1
    gang = [row for row in rows.load_gang(db, job_id, attempt_number) if slots is None or row.slot in slots]
    fewest_gpus = min((rows.offered_hardware(row).gpus for row in gang), default=0)
    processes = processes_per_machine(spec, len(gang), fewest_gpus)
    start = db.sql.get(CheckpointRow, job.checkpoint) if job.checkpoint else None
    course: dict[str, Any] = {"generation": number}
    if skip:
        start = checkpoints.newest_before(db, job, skip[0])
        course |= {
            "checkpoint": start.id if start else None,
            "skipped_step_spans": [*(job.skipped_step_spans or []), list(skip)],
        }
    course |= _latest_kept(db, job, start.step if start else 0)
    rows.try_update(db, update(JobRow).where(JobRow.id == job_id, JobRow.generation == job.generation).values(**course))
    _end_generation(db, job_id, reason)
    db.sql.execute(
        insert(GenerationRow).values(
            job=job_id,
            number=number,
            attempt=attempt_number,
            state=GenerationState.FORMING,
            world_size=len(gang) * processes,
            start_checkpoint=start.id if start else None,
            start_step=start.step if start else 0,
            opened_at=db.now,
        )
    )
    db.sql.execute(
        insert(MemberRow),
        [
            {"job": job_id, "generation": number, "node_rank": rank, "machine": row.id, "nproc": processes}
            for rank, row in enumerate(gang)
        ],
    )
    rows.record_generation_event(db, job, number, attempt_number, GenerationState.FORMING, reason)
    db.request_tick()
    return number


def _latest_kept(db: Read, job: JobRow, step: int) -> dict[str, Any]:
    """What the job shows as its latest values once it is rolled back to a step: none of the steps after it."""
    if job.generation == 0:
        return {}
    of_machines = {name: value for name, value in job.latest.items() if name.startswith(metrics.SYSTEM_PREFIX)}
    kept = metrics.load_latest(db, job.id, step)
    return {"latest": of_machines | kept, "last_epoch_milli": metrics.epoch_milli(kept)}


def close_attempt(db: Write, job_id: UUID, attempt_number: int, reason: str) -> bool:
    """Wind an attempt down: its machines are no longer wanted. Its generation stays the current one until none
    is at work, so that a checkpoint being uploaded still counts."""
    trained = exists(
        select(GenerationRow.number).where(
            GenerationRow.job == job_id,
            GenerationRow.attempt == attempt_number,
            GenerationRow.last_step > GenerationRow.start_step,
        )
    )
    closing = transitions.move_attempt(job_id, attempt_number, AttemptState.CLOSING)
    db.request_tick()
    return rows.try_update(
        db, closing.values(reason=reason, closed_at=db.now, trained=or_(AttemptRow.trained, trained))
    )


def apply_action(
    db: Write, job_id: UUID, attempt_number: int, generation: int | None, action: failures.AttemptAction
) -> bool:
    """Apply the decision about an attempt, if its job is still in the attempt and generation that it was made for."""
    job, attempt = rows.lock_job(db, job_id), rows.load_attempt(db, job_id, attempt_number)
    if not rows.is_wanted(job, attempt) or (generation or 0) != _generation_of(db, job, attempt_number):
        return False
    if isinstance(action, failures.Restart):
        return _restart(db, job, attempt, action)
    if isinstance(action, failures.EndJob):
        _end_job(db, job, action)
        return close_attempt(db, job_id, attempt_number, action.reason)
    if isinstance(action, failures.EndAttempt):
        spec = JobSpec.from_stored(job.spec)
        counts = _count_attempts(db, job_id, attempt_number, action.reason)
        # Losses are what the policy of a deadline reckons with: they use up no retries.
        retry_max = spec.retry.max if spec.limits.deadline is None else sys.maxsize
        end = retries.refuse_retry(action.reason, action.detail, *counts, spec.retry.on, retry_max)
        if end is not None:
            _end_job(db, job, end)
        else:
            jobs.transition(
                db,
                job,
                JobState.QUEUED,
                actor="fleet",
                reason=action.detail,
                wait_reason=_WAIT_REASONS.get(action.reason, WaitReason.TERMINATING),
                wait_detail=action.detail.as_json(),
                queued_at=job.queued_at,
            )
        return close_attempt(db, job_id, attempt_number, action.reason)
    return False


_WAIT_REASONS = {
    "capacity": WaitReason.CAPACITY,
    "price": WaitReason.CAPACITY,
    "region": WaitReason.CAPACITY,
    "quota": WaitReason.QUOTA,
}
"""By the reason for which an attempt ended: what its job waits for next."""


def _restart(db: Write, job: JobRow, attempt: AttemptRow, action: failures.Restart) -> bool:
    """Open the next generation. Of a gang that may lose machines, those join that still can; False: too few do."""
    active = active_attempts.load_active_attempt(db, attempt)
    if not active.elastic:
        open_generation(db, job.id, attempt.number, action.reason, skip=action.skip)
        return True
    slots = rendezvous.select_members(active.machine_statuses, active.spec.resources.min_nodes, action.excluded)
    if not slots:
        return False
    open_generation(db, job.id, attempt.number, action.reason, slots, action.skip)
    for machine in active.machines:
        if machine.slot in action.excluded:
            observations.begin_termination(db, machine.id, NotReadyInTime(), lease=False)
    return True


def begin_stopping(db: Write, job_id: UUID) -> bool:
    """Wind a stopping job's attempt down: its ranks drain, then its machines end."""
    job = rows.lock_job(db, job_id)
    if job.state != JobState.STOPPING:
        return False
    return close_attempt(db, job_id, job.attempt, job.stop_reason if job.stop_reason in _REQUEUED else "stop")


_REQUEUED = (StopReason.EVICTION, StopReason.MARKET)
"""Stops after which a job goes back to its place in the queue."""


def finish_attempt(db: Write, job_id: UUID, attempt_number: int) -> bool:
    """An attempt is closed once all its machines are terminated or left to their provider; a stopping job ends, pauses
    or queues with it."""
    job = rows.lock_job(db, job_id)
    at_work = exists(
        select(MachineRow.id).where(MachineRow.job == job_id, MachineRow.attempt == attempt_number, rows.at_work())
    )
    if db.sql.scalar(select(at_work)):
        return False
    if job.state == JobState.STOPPING and job.attempt == attempt_number:
        _after_stopping(db, job)
    if not rows.try_update(db, transitions.move_attempt(job_id, attempt_number, AttemptState.CLOSED).where(~at_work)):
        return False
    if job.attempt == attempt_number:
        _end_generation(db, job_id, attempts.AttemptEnded())
    db.request_tick()
    return True


def resume_jobs_paused_by_budget(db: Write, account: UUID, actor: str) -> list[UUID]:
    """Queue the jobs that their budget paused or is pausing: an account that pays for them is about to be raised.

    Call it before `ledger.set_limit`, in the same transaction: jobs are written before accounts.
    """
    pausing = select(JobRow).where(
        JobRow.state.in_(("paused", "stopping")), JobRow.desired_state == "pause", JobRow.stop_reason == "budget"
    )
    paused = list(db.sql.scalars(pausing.order_by(JobRow.id)))
    resumed = []
    for job in paused:
        if any(row.id == account for row in ledger.ancestors(db, ledger.job_account(db, job.id).id)):
            jobs.resume(db, job.id, actor, reason=job_reasons.BudgetRaised())
            resumed.append(job.id)
    return resumed


def _after_stopping(db: Write, job: JobRow) -> None:
    end = funding.end_reason_after_stopping(DesiredState(job.desired_state), job.stop_reason)
    if end is not None:
        jobs.transition(db, job, JobState.ENDED, actor="fleet", reason=job_reasons.MachinesTerminated(), end_reason=end)
    elif job.desired_state == DesiredState.PAUSE:
        jobs.transition(db, job, JobState.PAUSED, actor="fleet", reason=job_reasons.MachinesTerminated())
    else:
        columns = {"stop_reason": "", "queued_at": job.queued_at if job.stop_reason in _REQUEUED else db.now}
        jobs.transition(db, job, JobState.QUEUED, actor="fleet", reason=job_reasons.MachinesTerminated(), **columns)


def _end_job(db: Write, job: JobRow, end: failures.EndJob) -> None:
    """End a job; one that never ran goes back to the queue first, as the table of moves has it."""
    if job.state == JobState.LAUNCHING:
        job = jobs.transition(db, job, JobState.QUEUED, actor="fleet", reason=end.detail)
    jobs.transition(
        db,
        job,
        JobState.ENDED,
        actor="fleet",
        reason=end.detail,
        end_reason=end.reason,
        end_detail=end.detail.as_json(),
    )


def _count_attempts(db: Read, job_id: UUID, attempt_number: int, reason: str) -> tuple[int, int, int]:
    """How many attempts trained and were interrupted; how many in a row, up to this one, launched machines without a
    step; and how many of these, up to this one, ended for this reason."""
    trained = set(
        db.sql.scalars(
            select(GenerationRow.attempt).where(
                GenerationRow.job == job_id, GenerationRow.last_step > GenerationRow.start_step
            )
        )
    )
    launched = set(
        db.sql.scalars(select(MachineRow.attempt).where(MachineRow.job == job_id, MachineRow.launched_at.is_not(None)))
    )
    ended = select(AttemptRow.number, AttemptRow.reason).where(AttemptRow.job == job_id)
    reasons = {row.number: row.reason for row in db.sql.execute(ended)}
    without_step, same, others = 0, 0, False
    for number in range(attempt_number, 0, -1):
        if number in trained:
            break
        if number in launched:
            without_step += 1
            others = others or (number != attempt_number and reasons.get(number) != reason)
            same += not others
    interrupted = [number for number in trained if number == attempt_number or reasons.get(number) in retries.RULES]
    return len(interrupted), without_step, same


def _end_generation(db: Write, job_id: UUID, reason: Reason) -> None:
    ended = transitions.move_generation(job_id, GenerationState.ENDED)
    rows.try_update(db, ended.values(ended_at=db.now, end_reason=reason.as_json()))


def _generation_of(db: Read, job: JobRow, attempt_number: int) -> int:
    """The job's current generation if it belongs to this attempt, else 0."""
    generation = db.sql.get(GenerationRow, (job.id, job.generation))
    return generation.number if generation is not None and generation.attempt == attempt_number else 0

# SPDX-License-Identifier: Apache-2.0
"""A job's status: its state with the reason for it."""

from __future__ import annotations

from typing import Any

from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.states import EndReason, JobState, MachineState, StopReason, WaitReason
from shoestring_core.store.fleet.launches import UNKNOWN
from shoestring_core.store.queries import JobRows
from shoestring_core.wording import Reason, jobs, machines
from shoestring_core.wording.waits import InQueue

from shoestring_api.serializers.stored import read_reason, read_spans


def status_of(rows: JobRows) -> Reason:
    """With what will keep it from going on, or keeps its machines from being launched, as far as that is known."""
    status, trouble = _state_of(rows), None
    if rows.job.state in (JobState.LAUNCHING, JobState.RUNNING):
        trouble = read_reason(rows.job.wait_detail)
    if rows.job.state in (JobState.QUEUED, JobState.LAUNCHING, JobState.RUNNING):
        trouble = trouble or _launch_problem(rows)
    return jobs.WithTrouble(status, trouble) if trouble else status


def _launch_problem(rows: JobRows) -> Reason | None:
    """What keeps a machine from being launched until somebody acts, or until a new role is known everywhere."""
    newest = rows.machines[-1] if rows.machines and rows.job.state != JobState.RUNNING else None
    if newest and newest.state == MachineState.NEVER_LAUNCHED and newest.refusal in _TOLD:
        return machines.LaunchUnanswered(newest.refusal_text or "")
    unanswered = (row for row in rows.machines if (row.state, row.refusal) == (MachineState.LAUNCHING, UNKNOWN))
    return next((machines.LaunchUnanswered(row.refusal_text) for row in unanswered if row.refusal_text), None)


_TOLD = (RefusalKind.ROLE, RefusalKind.REGION)
"""Refusals for which a job is tried again, and that may need somebody to act."""


def _state_of(rows: JobRows) -> Reason:
    row = rows.job
    newest, skipped = rows.generations[-1] if rows.generations else None, read_spans(row.skipped_step_spans)
    match JobState(row.state):
        case JobState.AWAITING_APPROVAL:
            return jobs.AwaitingApproval()
        case JobState.QUEUED:
            return jobs.Waiting(wait_reason_of(rows), read_reason(wait_detail_of(rows)), rows.queue_position)
        case JobState.LAUNCHING if row.first_step_at is None:
            return jobs.StartingMachines()
        case JobState.RUNNING if row.first_step_at is None:
            return jobs.Preparing(skipped)
        case JobState.RUNNING if newest is not None and newest.first_step_at is not None:
            done = newest.last_step is not None and row.steps_total is not None and newest.last_step >= row.steps_total
            return jobs.Exporting(skipped) if done else jobs.Training(skipped)
        case JobState.LAUNCHING | JobState.RUNNING:
            return jobs.Recovering(row.attempt, skipped)
        case JobState.STOPPING:
            return jobs.Stopping(StopReason(row.stop_reason))
        case JobState.PAUSED:
            return jobs.PausedByBudget(rows.budget_wait) if row.stop_reason == StopReason.BUDGET else jobs.Paused()
        case JobState.ENDED:
            return jobs.Ended(EndReason(row.end_reason or ""), read_reason(row.end_detail), skipped)


def wait_reason_of(rows: JobRows) -> WaitReason | None:
    """What a queued or paused job waits for."""
    row = rows.job
    match JobState(row.state):
        case JobState.QUEUED | JobState.PAUSED if rows.budget_wait:
            return rows.budget_wait.waits_for
        case JobState.QUEUED:
            stored = WaitReason(row.wait_reason) if row.wait_reason else None
            return InQueue.waits_for if stored in (None, WaitReason.BUDGET) else stored
        case JobState.PAUSED:
            return WaitReason.RESUME
        case _:
            return None


def wait_detail_of(rows: JobRows) -> dict[str, Any] | None:
    """What exactly a queued job waits for, or a paused one that its budget can't pay for."""
    if rows.job.state == JobState.PAUSED and rows.budget_wait:
        return rows.budget_wait.as_json()
    if rows.job.state != JobState.QUEUED:
        return None
    if rows.budget_wait or rows.job.wait_reason in (None, WaitReason.BUDGET):
        return (rows.budget_wait or InQueue()).as_json()
    return rows.job.wait_detail

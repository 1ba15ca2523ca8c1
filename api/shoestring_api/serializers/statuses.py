# SPDX-License-Identifier: Apache-2.0
"""A job's status: its state with the reason for it."""

from __future__ import annotations

from typing import Any

from shoestring_core.states import EndReason, JobState, StopReason, WaitReason
from shoestring_core.store.tables import JobRow
from shoestring_core.wording import Reason, jobs, load
from shoestring_core.wording.units import Span
from shoestring_core.wording.waits import InQueue


def status_of(row: JobRow, queue_position: int | None = None) -> Reason:
    match JobState(row.state):
        case JobState.AWAITING_APPROVAL:
            return jobs.AwaitingApproval()
        case JobState.QUEUED:
            return jobs.Waiting(wait_reason_of(row), _load(wait_detail_of(row)), queue_position)
        case JobState.LAUNCHING:
            return jobs.StartingMachines() if row.first_step_at is None else jobs.Recovering()
        case JobState.RUNNING:
            skipped = _skipped_spans(row)
            return jobs.Preparing(skipped) if row.first_step_at is None else jobs.Training(skipped)
        case JobState.STOPPING:
            return jobs.Stopping(StopReason(row.stop_reason))
        case JobState.PAUSED:
            return jobs.PausedByBudget() if row.stop_reason == StopReason.BUDGET else jobs.Paused()
        case JobState.ENDED:
            return jobs.Ended(EndReason(row.end_reason or ""), _load(row.end_detail), _skipped_spans(row))


def wait_reason_of(row: JobRow) -> WaitReason | None:
    """What a queued or paused job waits for."""
    match JobState(row.state):
        case JobState.QUEUED:
            return WaitReason(row.wait_reason) if row.wait_reason else InQueue.waits_for
        case JobState.PAUSED:
            return WaitReason.BUDGET if row.stop_reason == StopReason.BUDGET else WaitReason.RESUME
        case _:
            return None


def wait_detail_of(row: JobRow) -> dict[str, Any] | None:
    """What exactly a queued job waits for."""
    return InQueue().as_json() if row.state == JobState.QUEUED and row.wait_reason is None else row.wait_detail


def _load(stored: dict[str, Any] | None) -> Reason | None:
    return load(**stored) if stored else None


def _skipped_spans(row: JobRow) -> tuple[Span, ...]:
    return tuple((int(first), int(last)) for first, last in row.skipped_step_spans or ())

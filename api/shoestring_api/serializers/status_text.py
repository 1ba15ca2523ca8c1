# SPDX-License-Identifier: Apache-2.0
"""The sentence that describes a job's state to its user."""

from __future__ import annotations

from shoestring_core.decide import nan_recovery
from shoestring_core.states import SUCCESS_REASONS, EndReason, JobState
from shoestring_core.store.tables import JobRow

WAIT_TEXTS = {
    "budget": "Waiting for budget",
    "slots": "Waiting for machines",
    "turn": "Waiting in the queue",
    "capacity": "Waiting for capacity",
    "quota": "Waiting for the provider's quota",
    "terminating": "Waiting for earlier machines to terminate",
}

END_TEXTS = {
    EndReason.SUCCEEDED: "Finished",
    EndReason.GOAL_REACHED: "Finished: goal reached",
    EndReason.USER_STOP: "Stopped",
    EndReason.BUDGET: "Stopped: budget exhausted",
    EndReason.TIME_LIMIT: "Stopped: time limit reached",
    EndReason.USER_CODE: "Failed: the training code raised an exception",
    EndReason.OUT_OF_MEMORY: "Failed: out of memory",
    EndReason.NAN: "Failed: the loss became NaN or Inf",
    EndReason.DATA: "Failed: the training data could not be read",
    EndReason.IMAGE: "Failed: the machine image could not be used",
    EndReason.NO_CAPACITY: "Failed: no machines available",
    EndReason.QUOTA: "Failed: the provider's quota is exhausted",
    EndReason.ACCOUNT: "Failed: the provider rejected the account",
    EndReason.INFRASTRUCTURE: "Failed: the machines failed repeatedly",
}

STOPPING_TEXTS = {
    "user": "Stopping: requested by a user",
    "budget": "Stopping: budget exhausted",
    "time_limit": "Stopping: time limit reached",
    "goal": "Stopping: goal reached",
}


def describe_status(row: JobRow) -> str:
    """Return the job's state and its reason as a sentence that a user can act on."""
    match JobState(row.state):
        case JobState.AWAITING_APPROVAL:
            return "Waiting for an admin's approval."
        case JobState.QUEUED:
            return _join(WAIT_TEXTS.get(row.wait_reason or "", "Waiting to start"), row.wait_text)
        case JobState.LAUNCHING:
            if row.first_step_at is None:
                return "Starting machines."
            return "Recovering: starting machines to resume from the last checkpoint."
        case JobState.RUNNING:
            if row.first_step_at is None:
                return f"Preparing: loading data, starting workers{_skipped_batches(row)}."
            return f"Training{_skipped_batches(row)}."
        case JobState.STOPPING:
            return f"{STOPPING_TEXTS.get(row.stop_reason, 'Stopping')}. Saving a checkpoint, then terminating machines."
        case JobState.PAUSED:
            if row.stop_reason == "budget":
                return (
                    "Paused: budget exhausted. It resumes automatically when the budget is raised "
                    "(shoestring budget set, with --job for the job's own limit)."
                )
            return "Paused. Resume it to continue."
        case JobState.ENDED:
            reason = EndReason(row.end_reason or "")
            return _join(END_TEXTS[reason] + (_skipped_batches(row) if reason in SUCCESS_REASONS else ""), row.end_text)


def _skipped_batches(row: JobRow) -> str:
    spans = [(int(first), int(last)) for first, last in row.skipped_steps or ()]
    return f", skipping {nan_recovery.describe_spans(spans)} (NaN/Inf)" if spans else ""


def _join(head: str, text: str | None) -> str:
    text = (text or "").strip()
    return f"{head}: {text}" if text and ":" not in head else f"{head}. {text}".strip()

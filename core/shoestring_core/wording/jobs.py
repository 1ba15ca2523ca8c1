# SPDX-License-Identifier: Apache-2.0
"""The status of jobs, why they move from state to state, and why a move that a user wants isn't possible."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import FiniteFloat

from shoestring_core.durations import format_duration
from shoestring_core.states import EndReason, JobStatus, StopReason, WaitReason
from shoestring_core.wording.reason import NestedReason, Reason
from shoestring_core.wording.units import Span, batches_of_steps, dollars, moment

# The status of a job

_BEGINS_WITH_WORD = re.compile(r"[a-z]+ ")

_WAITS = {
    WaitReason.BUDGET: "Waiting for budget",
    WaitReason.SLOTS: "Waiting for machines",
    WaitReason.TURN: "Waiting for its turn",
    WaitReason.CAP: "Waiting at a concurrency cap",
    WaitReason.CAPACITY: "Waiting for capacity",
    WaitReason.QUOTA: "Waiting for quota",
    WaitReason.TERMINATING: "Waiting for earlier machines to terminate",
}

_ENDS = {
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
    EndReason.NETWORK: "Failed: its machine could not reach this service",
    EndReason.BOOT: "Failed: its machines did not boot",
    EndReason.HARDWARE: "Failed: its machines' GPUs were broken",
    EndReason.INFRASTRUCTURE: "Failed: the machines failed repeatedly",
}

_STOPS = {
    StopReason.USER: "Stopping: requested by a user",
    StopReason.BUDGET: "Stopping: budget exhausted",
    StopReason.TIME_LIMIT: "Stopping: time limit reached",
    StopReason.GOAL: "Stopping: goal reached",
    StopReason.EVICTION: "Making room for a team that is below its guaranteed rate",
    StopReason.MARKET: "Changing machines to keep its deadline",
}


@dataclass(frozen=True)
class AwaitingApproval(Reason):
    code = "awaiting_approval"

    def text(self) -> str:
        return "Waiting for an admin's approval."


@dataclass(frozen=True)
class Waiting(Reason):
    """In the queue. `detail` says what exactly is missing; `position` is the place among its member's queued jobs, None
    if it is far back; it is said where the wait ends in that order."""

    code = "waiting"
    waits_for: WaitReason | None
    detail: NestedReason | None
    position: int | None = None

    def text(self) -> str:
        what = _WAITS.get(self.waits_for, "Waiting to start") if self.waits_for else "Waiting to start"
        if self.position is not None and self.waits_for in (WaitReason.SLOTS, WaitReason.TURN):
            what += f" (number {self.position} of its owner's queued jobs)"
        return _join(what, self.detail)


@dataclass(frozen=True)
class StartingMachines(Reason):
    code = "starting_machines"

    def text(self) -> str:
        return "Starting machines."


@dataclass(frozen=True)
class Recovering(Reason):
    """It has trained, but its current generation has no step yet."""

    code = "recovering"
    attempt: int
    skipped: tuple[Span, ...]

    def text(self) -> str:
        return f"Recovering (attempt {self.attempt}): resuming from the last checkpoint{_skipping(self.skipped)}."


@dataclass(frozen=True)
class Preparing(Reason):
    """Running, before the first step. `skipped`: spans of steps that it skips because of NaN or Inf."""

    code = "preparing"
    skipped: tuple[Span, ...]

    def text(self) -> str:
        return f"Preparing: loading data, starting workers{_skipping(self.skipped)}."


@dataclass(frozen=True)
class Training(Reason):
    code = "training"
    skipped: tuple[Span, ...]

    def text(self) -> str:
        return f"Training{_skipping(self.skipped)}."


@dataclass(frozen=True)
class Exporting(Reason):
    """Its last step is done; the model, the results and the final checkpoint are being written and uploaded."""

    code = "exporting"
    skipped: tuple[Span, ...]

    def text(self) -> str:
        return f"Exporting the model: training is complete{_skipping(self.skipped)}."


@dataclass(frozen=True)
class WithTrouble(Reason):
    """`status`: what it is doing; `trouble`: what will keep it from going on."""

    code = "with_trouble"
    status: NestedReason
    trouble: NestedReason

    def text(self) -> str:
        return f"{self.status.text()} {self.trouble.text()}"


@dataclass(frozen=True)
class StorageLost(Reason):
    """The service can't renew the credentials by which checkpoints are stored.

    problem  as a sentence; "": none but that they end
    until    until when its machines are funded (µs UTC): as long as the URLs work that they were given
    """

    code = "storage_lost"
    problem: str
    until: int

    def text(self) -> str:
        problem = self.problem or "They have not been renewed."
        return (
            f"Its machines run only until {moment(self.until)}, because the credentials for storing checkpoints "
            f"expire. {problem} The machines store a last checkpoint at that time, with upload URLs that they "
            "already have, and the job resumes from it once the credentials are valid. If a machine is lost before "
            "that, the work since the last stored checkpoint is lost."
        )


@dataclass(frozen=True)
class StorageRestored(Reason):
    code = "storage_restored"

    def text(self) -> str:
        return "Checkpoints can be stored again."


@dataclass(frozen=True)
class Stopping(Reason):
    code = "stopping"
    stop_reason: StopReason

    def text(self) -> str:
        return f"{_STOPS[self.stop_reason]}. Saving a checkpoint, then terminating machines."


@dataclass(frozen=True)
class PausedByBudget(Reason):
    """`shortage`: what the budget lacks for a start now; None: nothing."""

    code = "paused_by_budget"
    shortage: NestedReason | None = None

    def text(self) -> str:
        if self.shortage is None:
            return "Paused: budget exhausted. It can pay for a start again: resume the job to continue."
        return f"Paused: budget exhausted. {self.shortage.text()} Once it is raised, the job resumes automatically."


@dataclass(frozen=True)
class BudgetStillExhausted(Reason):
    """Of a job that its budget paused, and that can't be resumed: `shortage` is what the budget lacks for a start."""

    code = "budget_still_exhausted"
    shortage: NestedReason

    def text(self) -> str:
        return f"The job stays paused. {self.shortage.text()}"

    def hint(self) -> str:
        return "It resumes automatically when the budget is raised. Ask for more: shoestring budget request."


@dataclass(frozen=True)
class Paused(Reason):
    code = "paused"

    def text(self) -> str:
        return "Paused. Resume it to continue."


@dataclass(frozen=True)
class Ended(Reason):
    code = "ended"
    end_reason: EndReason
    detail: NestedReason | None
    skipped: tuple[Span, ...]

    def text(self) -> str:
        skipped = _skipping(self.skipped) if self.end_reason.status is JobStatus.SUCCEEDED else ""
        return _join(_ENDS[self.end_reason] + skipped, self.detail)


def _join(head: str, detail: Reason | None) -> str:
    """A detail may quote an error, which begins in lower case; a first word that may be a name stays as it is."""
    text = detail.text() if detail else ""
    return f"{head}. {text[0].upper() + text[1:] if _BEGINS_WITH_WORD.match(text) else text}".strip()


def _skipping(spans: tuple[Span, ...]) -> str:
    return f", skipping {batches_of_steps(spans)} (NaN/Inf)" if spans else ""


# Moves of jobs


@dataclass(frozen=True)
class Submitted(Reason):
    code = "submitted"

    def text(self) -> str:
        return "Submitted."


@dataclass(frozen=True)
class RetryOf(Reason):
    code = "retry_of"
    job: str

    def text(self) -> str:
        return f"Retry of job {self.job}."


@dataclass(frozen=True)
class AttemptStarted(Reason):
    code = "attempt_started"
    attempt: int
    nodes: int
    type: str
    market: str

    def text(self) -> str:
        return f"Attempt {self.attempt}: {self.nodes} × {self.type} ({self.market})."


@dataclass(frozen=True)
class GenerationFormed(Reason):
    code = "generation_formed"
    generation: int

    def text(self) -> str:
        return f"Generation {self.generation} formed."


@dataclass(frozen=True)
class FinishedAtStep(Reason):
    code = "finished_at_step"
    step: int

    def text(self) -> str:
        return f"Finished at step {self.step}."


@dataclass(frozen=True)
class MachinesTerminated(Reason):
    code = "machines_terminated"

    def text(self) -> str:
        return "All machines are terminated."


@dataclass(frozen=True)
class StopRequested(Reason):
    code = "stop_requested"

    def text(self) -> str:
        return "Requested by a user."


@dataclass(frozen=True)
class ResumeRequested(Reason):
    code = "resume_requested"

    def text(self) -> str:
        return "Resumed by a user."


@dataclass(frozen=True)
class BudgetRaised(Reason):
    code = "budget_raised"

    def text(self) -> str:
        return "The budget was raised."


@dataclass(frozen=True)
class TimeLimitReached(Reason):
    code = "time_limit_reached"
    limit_s: FiniteFloat

    def text(self) -> str:
        return f"It has trained for {format_duration(self.limit_s)}, its limits.time."


@dataclass(frozen=True)
class Evicted(Reason):
    """It makes room for a job of `team`, which is guaranteed so many dollars an hour and used fewer; `lender`: its own
    team."""

    code = "evicted"
    team: str
    guaranteed: str
    used: str
    lender: str
    lender_guaranteed: str
    lender_used: str

    def text(self) -> str:
        own = f", of which {dollars(self.lender_guaranteed)} is guaranteed" if self.lender_guaranteed != "0.00" else ""
        return (
            f"It makes room for a job of {self.team}, which is guaranteed {dollars(self.guaranteed)} an hour and used "
            f"{dollars(self.used)}; {self.lender} used {dollars(self.lender_used)}{own}. It resumes from its "
            "checkpoint when machines are free."
        )


# Moves that are not possible


@dataclass(frozen=True)
class CannotPause(Reason):
    code = "cannot_pause"
    state: str

    def text(self) -> str:
        return f"The job is {_readable(self.state)}; only a queued or running job can be paused."


@dataclass(frozen=True)
class CannotResume(Reason):
    code = "cannot_resume"
    state: str

    def text(self) -> str:
        return f"The job is {_readable(self.state)}; it can't be resumed."

    def hint(self) -> str:
        return "`shoestring retry` submits it again."


@dataclass(frozen=True)
class CannotRetry(Reason):
    code = "cannot_retry"
    state: str

    def text(self) -> str:
        return f"The job is {_readable(self.state)}; only an ended job can be retried."

    def hint(self) -> str:
        return "Stop it first."


@dataclass(frozen=True)
class CannotMove(Reason):
    code = "cannot_move"
    state: str
    to: str

    def text(self) -> str:
        return f"The job is {_readable(self.state)}; it can't become {_readable(self.to)} now."


@dataclass(frozen=True)
class BeingStopped(Reason):
    code = "being_stopped"

    def text(self) -> str:
        return "The job is being stopped."


@dataclass(frozen=True)
class ChangedMeanwhile(Reason):
    code = "changed_meanwhile"

    def text(self) -> str:
        return "Another request changed the job at the same time."

    def hint(self) -> str:
        return "Try again."


@dataclass(frozen=True)
class ScheduleOutdated(Reason):
    """The job has had another attempt since the schedule was made."""

    code = "schedule_outdated"
    job: str

    def text(self) -> str:
        return f"Job {self.job} has changed since it was scheduled."


def _readable(state: str) -> str:
    return state.replace("_", " ")

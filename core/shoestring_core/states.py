# SPDX-License-Identifier: Apache-2.0
"""The states of jobs, attempts, machines and generations, their allowed transitions, and what an end reason means."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, TypeVar

from shoestring_core.exit_codes import ExitCode


class JobState(StrEnum):
    AWAITING_APPROVAL = "awaiting_approval"
    QUEUED = "queued"
    LAUNCHING = "launching"
    RUNNING = "running"
    STOPPING = "stopping"
    PAUSED = "paused"
    ENDED = "ended"


class JobStatus(StrEnum):
    """What a job is shown as: its state, and of an ended one how it ended."""

    AWAITING_APPROVAL = "awaiting_approval"
    QUEUED = "queued"
    LAUNCHING = "launching"
    RUNNING = "running"
    STOPPING = "stopping"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    STOPPED = "stopped"
    FAILED = "failed"

    @classmethod
    def of(cls, state: JobState, end_reason: EndReason | None) -> JobStatus:
        return end_reason.status if end_reason else cls(state)


class EndReason(StrEnum):
    """Why a job ended. What each means is in END_MEANINGS."""

    SUCCEEDED = "succeeded"
    GOAL_REACHED = "goal_reached"
    USER_STOP = "user_stop"
    BUDGET = "budget"
    TIME_LIMIT = "time_limit"
    USER_CODE = "user_code"
    OUT_OF_MEMORY = "out_of_memory"
    NAN = "nan"
    DATA = "data"
    IMAGE = "image"
    NO_CAPACITY = "no_capacity"
    QUOTA = "quota"
    ACCOUNT = "account"
    NETWORK = "network"
    BOOT = "boot"
    HARDWARE = "hardware"
    INFRASTRUCTURE = "infrastructure"

    @property
    def status(self) -> JobStatus:
        return END_MEANINGS[self].status

    @property
    def exit_code(self) -> ExitCode:
        return END_MEANINGS[self].exit_code

    @property
    def rank_error(self) -> bool:
        return END_MEANINGS[self].rank_error


class EndMeaning(NamedTuple):
    """What an end reason means.

    status      how the job is shown
    exit_code   how `shoestring watch` exits
    rank_error  a rank reports it as the kind of its error; the job ends at once, because it would fail again
    """

    status: JobStatus
    exit_code: ExitCode
    rank_error: bool = False


E = EndReason

END_MEANINGS: Mapping[EndReason, EndMeaning] = {
    E.SUCCEEDED: EndMeaning(JobStatus.SUCCEEDED, ExitCode.OK),
    E.GOAL_REACHED: EndMeaning(JobStatus.SUCCEEDED, ExitCode.OK),
    E.USER_STOP: EndMeaning(JobStatus.STOPPED, ExitCode.JOB_FAILED),
    E.BUDGET: EndMeaning(JobStatus.STOPPED, ExitCode.BUDGET),
    E.TIME_LIMIT: EndMeaning(JobStatus.STOPPED, ExitCode.JOB_FAILED),
    E.USER_CODE: EndMeaning(JobStatus.FAILED, ExitCode.JOB_FAILED, rank_error=True),
    E.OUT_OF_MEMORY: EndMeaning(JobStatus.FAILED, ExitCode.JOB_FAILED, rank_error=True),
    E.NAN: EndMeaning(JobStatus.FAILED, ExitCode.JOB_FAILED, rank_error=True),
    E.DATA: EndMeaning(JobStatus.FAILED, ExitCode.JOB_FAILED, rank_error=True),
    E.IMAGE: EndMeaning(JobStatus.FAILED, ExitCode.JOB_FAILED),
    E.NO_CAPACITY: EndMeaning(JobStatus.FAILED, ExitCode.NO_CAPACITY),
    E.QUOTA: EndMeaning(JobStatus.FAILED, ExitCode.NO_CAPACITY),
    E.ACCOUNT: EndMeaning(JobStatus.FAILED, ExitCode.JOB_FAILED),
    E.NETWORK: EndMeaning(JobStatus.FAILED, ExitCode.JOB_FAILED),
    E.BOOT: EndMeaning(JobStatus.FAILED, ExitCode.JOB_FAILED),
    E.HARDWARE: EndMeaning(JobStatus.FAILED, ExitCode.JOB_FAILED),
    E.INFRASTRUCTURE: EndMeaning(JobStatus.FAILED, ExitCode.JOB_FAILED),
}


class WaitReason(StrEnum):
    """What a queued job waits for; a paused one waits for budget or to be resumed."""

    BUDGET = "budget"
    SLOTS = "slots"
    TURN = "turn"
    CAP = "cap"
    CAPACITY = "capacity"
    QUOTA = "quota"
    TERMINATING = "terminating"
    RESUME = "resume"


class DesiredState(StrEnum):
    """What users and limits want a job to do; the reconciler acts on it."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"


class StopReason(StrEnum):
    """Why a job stops: the desired state is pause or stop, or after an eviction, or a change of market, still run."""

    USER = "user"
    BUDGET = "budget"
    TIME_LIMIT = "time_limit"
    GOAL = "goal"
    EVICTION = "eviction"
    MARKET = "market"

    @property
    def end_reason(self) -> EndReason:
        """How a job ends that stops for it."""
        return _END_REASONS[self]


_END_REASONS = {
    StopReason.USER: EndReason.USER_STOP,
    StopReason.BUDGET: EndReason.BUDGET,
    StopReason.TIME_LIMIT: EndReason.TIME_LIMIT,
    StopReason.GOAL: EndReason.GOAL_REACHED,
}


class AttemptState(StrEnum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class MachineState(StrEnum):
    PLANNED = "planned"
    LAUNCHING = "launching"
    RUNNING = "running"
    TERMINATING = "terminating"
    TERMINATED = "terminated"
    NEVER_LAUNCHED = "never_launched"


class GenerationState(StrEnum):
    FORMING = "forming"
    FORMED = "formed"
    ENDED = "ended"


J, A, M, G = JobState, AttemptState, MachineState, GenerationState

# The states that each state may change to: the UPDATEs of `store.transitions` are guarded by these tables.

JOB_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    J.AWAITING_APPROVAL: frozenset({J.QUEUED, J.ENDED}),
    J.QUEUED: frozenset({J.LAUNCHING, J.PAUSED, J.ENDED}),
    J.LAUNCHING: frozenset({J.RUNNING, J.QUEUED, J.STOPPING}),
    J.RUNNING: frozenset({J.QUEUED, J.STOPPING, J.ENDED}),
    J.STOPPING: frozenset({J.PAUSED, J.QUEUED, J.ENDED}),
    J.PAUSED: frozenset({J.QUEUED, J.ENDED}),
    J.ENDED: frozenset(),
}

ATTEMPT_TRANSITIONS: Mapping[AttemptState, frozenset[AttemptState]] = {
    A.OPEN: frozenset({A.CLOSING}),
    A.CLOSING: frozenset({A.CLOSED}),
    A.CLOSED: frozenset({A.OPEN}),  # one that launched no machine is opened again under its number
}

MACHINE_TRANSITIONS: Mapping[MachineState, frozenset[MachineState]] = {
    M.PLANNED: frozenset({M.LAUNCHING, M.RUNNING, M.TERMINATING, M.TERMINATED, M.NEVER_LAUNCHED}),
    # launching again: a call without an answer is repeated
    M.LAUNCHING: frozenset({M.LAUNCHING, M.RUNNING, M.TERMINATING, M.TERMINATED, M.NEVER_LAUNCHED}),
    M.RUNNING: frozenset({M.TERMINATING, M.TERMINATED}),
    M.TERMINATING: frozenset({M.TERMINATED}),
    M.TERMINATED: frozenset(),
    M.NEVER_LAUNCHED: frozenset(),
}

GENERATION_TRANSITIONS: Mapping[GenerationState, frozenset[GenerationState]] = {
    G.FORMING: frozenset({G.FORMED, G.ENDED}),
    G.FORMED: frozenset({G.ENDED}),
    G.ENDED: frozenset(),
}

S = TypeVar("S", bound=StrEnum)


def sources(transitions: Mapping[S, frozenset[S]], to: S) -> list[S]:
    """The states that may change to `to`."""
    return [state for state, allowed in transitions.items() if to in allowed]


def final_states(transitions: Mapping[S, frozenset[S]]) -> list[S]:
    """The states that never change."""
    return [state for state, allowed in transitions.items() if not allowed]

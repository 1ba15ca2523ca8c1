# SPDX-License-Identifier: Apache-2.0
"""The states of jobs, attempts, machines and generations, and the allowed transitions of jobs."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    AWAITING_APPROVAL = "awaiting_approval"
    QUEUED = "queued"
    LAUNCHING = "launching"
    RUNNING = "running"
    STOPPING = "stopping"
    PAUSED = "paused"
    ENDED = "ended"


class EndReason(StrEnum):
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
    INFRASTRUCTURE = "infrastructure"


class WaitReason(StrEnum):
    """What a queued job waits for; a paused one waits for budget or to be resumed."""

    BUDGET = "budget"
    SLOTS = "slots"
    TURN = "turn"
    CAPACITY = "capacity"
    QUOTA = "quota"
    TERMINATING = "terminating"
    RESUME = "resume"


SUCCESS_REASONS = frozenset({EndReason.SUCCEEDED, EndReason.GOAL_REACHED})

_STOPPED = frozenset({EndReason.USER_STOP, EndReason.BUDGET, EndReason.TIME_LIMIT})
OUTCOMES = {
    "finished": SUCCESS_REASONS,
    "stopped": _STOPPED,
    "failed": frozenset(EndReason) - SUCCESS_REASONS - _STOPPED,
}
"""What users call an ended job, and the reasons for which it ended."""


class DesiredState(StrEnum):
    """What users and limits want a job to do; the reconciler acts on it."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"


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


J = JobState

JOB_TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    J.AWAITING_APPROVAL: frozenset({J.QUEUED, J.ENDED}),
    J.QUEUED: frozenset({J.LAUNCHING, J.PAUSED, J.ENDED}),
    J.LAUNCHING: frozenset({J.RUNNING, J.QUEUED, J.STOPPING}),
    J.RUNNING: frozenset({J.QUEUED, J.STOPPING, J.ENDED}),
    J.STOPPING: frozenset({J.PAUSED, J.QUEUED, J.ENDED}),
    J.PAUSED: frozenset({J.QUEUED, J.ENDED}),
    J.ENDED: frozenset(),
}
"""The states that each state may change to; `store.jobs.transition` enforces it."""

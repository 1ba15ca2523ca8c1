# SPDX-License-Identifier: Apache-2.0
"""States as tables of legal moves. One guarded UPDATE per table is the only writer (`store.jobs`, `store.fleet`)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

S = TypeVar("S", bound=StrEnum)


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


SUCCESS = frozenset({EndReason.SUCCEEDED, EndReason.GOAL_REACHED})


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
    CALLING = "calling"
    UP = "up"
    ENDING = "ending"
    TERMINATED = "terminated"
    VOID = "void"


class GenerationState(StrEnum):
    FORMING = "forming"
    FORMED = "formed"
    ENDED = "ended"


J, M = JobState, MachineState

JOB_MOVES: dict[JobState, frozenset[JobState]] = {
    J.AWAITING_APPROVAL: frozenset({J.QUEUED, J.ENDED}),
    J.QUEUED: frozenset({J.LAUNCHING, J.PAUSED, J.ENDED}),
    J.LAUNCHING: frozenset({J.RUNNING, J.QUEUED, J.STOPPING}),
    J.RUNNING: frozenset({J.QUEUED, J.STOPPING, J.ENDED}),
    J.STOPPING: frozenset({J.PAUSED, J.QUEUED, J.ENDED}),
    J.PAUSED: frozenset({J.QUEUED, J.ENDED}),
    J.ENDED: frozenset(),
}

MACHINE_MOVES: dict[MachineState, frozenset[MachineState]] = {
    M.PLANNED: frozenset({M.VOID, M.CALLING}),
    M.CALLING: frozenset({M.VOID, M.UP, M.ENDING, M.TERMINATED}),
    M.UP: frozenset({M.ENDING, M.TERMINATED}),
    M.ENDING: frozenset({M.TERMINATED}),
    M.TERMINATED: frozenset(),
    M.VOID: frozenset(),
}

MACHINE_DEAD = frozenset({M.TERMINATED, M.VOID})


def sources(moves: Mapping[S, frozenset[S]], to: S) -> frozenset[S]:
    """The states from which `to` may be entered: the guard of every UPDATE."""
    return frozenset(source for source, targets in moves.items() if to in targets)

# SPDX-License-Identifier: Apache-2.0
"""A job with a deadline, the state of its runs, and the safety net that keeps each policy from being late."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ROUNDING = 1e-9
"""Hours: less is a rounding error."""


class Mode(IntEnum):
    WAITING = 0
    SPOT = 1
    ON_DEMAND = 2


@dataclass(frozen=True)
class DeadlineJob:
    """Times in hours, prices in units of the spot price.

    work         training time
    deadline     from the start of the job
    changeover   from the start of a machine until training continues there; billed
    price_ratio  on-demand price / spot price
    interval     between two decisions; availability is known at its beginning and holds until its end
    """

    work: float
    deadline: float
    changeover: float
    price_ratio: float
    interval: float

    @property
    def intervals(self) -> int:
        """Whole intervals before the deadline."""
        return math.floor(self.deadline / self.interval + ROUNDING)

    @property
    def reserve(self) -> float:
        """Time beyond the work that is left when a machine is started that may be lost: its own changeover, or the
        interval in which it can't be replaced, and that of the on-demand machine after it."""
        return self.changeover + max(self.changeover, self.interval)

    @property
    def is_feasible(self) -> bool:
        """Whether an on-demand machine that is started at once is in time."""
        return self.work + self.changeover <= self.intervals * self.interval + ROUNDING

    def time_left(self, interval: int) -> float:
        return (self.intervals - interval) * self.interval


@dataclass
class RunStates:
    """Arrays of shape [runs].

    mode             Mode
    zone             index of the zone that a spot machine is in
    work_left        hours of training
    changeover_left  hours until training continues
    """

    mode: Ints
    zone: Ints
    work_left: Floats
    changeover_left: Floats

    @classmethod
    def at_start(cls, runs: int, job: DeadlineJob) -> RunStates:
        return cls(np.zeros(runs, int), np.zeros(runs, int), np.full(runs, job.work), np.zeros(runs))


def keep_deadline(job: DeadlineJob, states: RunStates, wanted: Ints, time_left: float) -> Ints:
    """The wanted modes, or where they could make a run late, one that can't: the safety net of every policy.

    Waiting, or a new spot machine that is lost in this interval, must leave time to start one on-demand. Without that
    much time, a run may stay on its spot machine as long as losing it in this interval leaves it; else it goes
    on-demand.
    """
    trained = np.maximum(0.0, job.interval - states.changeover_left)
    left_if_lost = time_left - job.interval - (states.work_left - trained)
    can_stay = (states.mode == Mode.SPOT) & (left_if_lost >= job.changeover - ROUNDING)
    in_time = time_left >= states.work_left + job.reserve
    safe = np.where(can_stay & (wanted != Mode.ON_DEMAND), Mode.SPOT, Mode.ON_DEMAND)
    safe = np.where(in_time, wanted, safe)
    return np.where(states.work_left <= ROUNDING, Mode.WAITING, safe)

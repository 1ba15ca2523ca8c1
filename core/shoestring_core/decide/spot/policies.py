# SPDX-License-Identifier: Apache-2.0
"""When to wait, use spot or go on-demand. A policy only wants: the safety net of `deadline_job` has the last word.

Greedy and uniform progress are those of "Can't Be Late: Optimizing Spot Instance Savings under Deadlines" (NSDI 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shoestring_core.decide.spot.availability import AvailabilityHistory
from shoestring_core.decide.spot.deadline_job import Bools, DeadlineJob, Floats, Ints, Mode, RunStates, keep_deadline
from shoestring_core.decide.spot.value_table import Availability, ValueTable, solve


@dataclass(frozen=True)
class Situation:
    """What a policy knows at the beginning of an interval. Arrays of shape [runs].

    seen            the availability of each zone, now and before
    spot_available  whether a run that is on spot can stay there, and any other can get a machine
    time_left       hours until the deadline
    """

    job: DeadlineJob
    states: RunStates
    seen: AvailabilityHistory
    spot_available: Bools
    time_left: float


class Policy(Protocol):
    def choose(self, now: Situation) -> Ints:
        """The mode that each run should be in during the interval."""


def choose_modes(
    job: DeadlineJob, policy: Policy, states: RunStates, seen: AvailabilityHistory, time_left: float
) -> tuple[Ints, Ints]:
    """What a policy wants in the interval that begins, and what becomes of it by the safety net. A run whose spot
    machine is lost waits by now."""
    spot_available = (states.mode == Mode.SPOT) | seen.available.any(axis=1)
    wanted = policy.choose(Situation(job, states, seen, spot_available, time_left))
    return wanted, keep_deadline(job, states, wanted, time_left)


class Greedy:
    """Spot whenever it is available; on-demand once the safety net demands it, and then to the end."""

    def choose(self, now: Situation) -> Ints:
        on_demand = now.states.mode == Mode.ON_DEMAND
        return np.where(on_demand, Mode.ON_DEMAND, np.where(now.spot_available, Mode.SPOT, Mode.WAITING))


@dataclass(frozen=True)
class UniformProgress:
    """On-demand while the work is behind a steady pace and there is no spot; spot when it is available.

    hysteresis  a run leaves on-demand for spot once it is ahead of the pace by so many changeovers. The paper has 2;
                -inf: it leaves at once

    It never leaves on-demand to wait: that would pay a changeover each time.
    """

    hysteresis: float = 2.0

    def choose(self, now: Situation) -> Ints:
        job, states = now.job, now.states
        pace, elapsed = job.work / job.deadline, job.deadline - now.time_left
        progress = job.work - states.work_left
        on_demand = states.mode == Mode.ON_DEMAND
        if math.isfinite(self.hysteresis):
            leaves = progress >= (elapsed + self.hysteresis * job.changeover) * pace
        else:
            leaves = np.ones_like(on_demand)
        without_spot = np.where(on_demand | (progress < elapsed * pace), Mode.ON_DEMAND, Mode.WAITING)
        return np.where(now.spot_available & (leaves | ~on_demand), Mode.SPOT, without_spot)


class Adaptive:
    """The mode with the lowest expected cost to the end, by the uptimes and outages seen so far.

    Estimates are rounded to a geometric grid, so that runs share value tables; these are computed when first needed.
    """

    UPTIMES = 0.2 * 1.5 ** np.arange(16)
    OUTAGES = 0.1 * 1.6 ** np.arange(12)
    FALLBACKS = np.array([0.0, 0.25, 0.5, 0.75, 0.9, 0.97, 1.0])

    MARGIN = 0.01
    """Changeovers that waiting must save. With much slack it costs nothing, and the grid's errors would decide."""

    def __init__(self) -> None:
        self._job: DeadlineJob | None = None
        self._tables: ValueTable | None = None
        self._index = np.empty(0, int)

    def choose(self, now: Situation) -> Ints:
        job, states, seen = now.job, now.states, now.seen
        on_spot = states.mode == Mode.SPOT
        zone = np.where(on_spot, states.zone, seen.longest_lived_zones())
        uptime = np.take_along_axis(seen.uptimes(), zone[:, None], axis=1)[:, 0]
        available = Availability(uptime, seen.outages(), seen.fallbacks())
        table = self._tables_for(job, available)
        tables = self._tables
        assert tables is not None
        kept, stays_up, stays_down = available.transitions(job.interval)
        then, slack = now.time_left - job.interval, now.time_left - states.work_left

        def read(mode: Mode, left: Floats) -> tuple[Floats, Floats]:
            """Expected cost after this interval without spot and with it."""
            return tables.read(table, then, 0, mode, left), tables.read(table, then, 1, mode, left)

        up_next = np.where(now.spot_available, stays_up, 1 - stays_down)

        def expect(down: Floats, up: Floats) -> Floats:
            return down + up_next * (up - down)

        def billed(changeover_left: Floats) -> Floats:
            return np.minimum(job.interval, changeover_left + states.work_left)

        wait = expect(*read(Mode.WAITING, slack - job.interval))
        pays = np.where(states.mode == Mode.ON_DEMAND, states.changeover_left, job.changeover)
        on_demand = job.price_ratio * billed(pays) + expect(*read(Mode.ON_DEMAND, slack - pays))
        pays = np.where(on_spot, states.changeover_left, job.changeover)
        lost_down, lost_up = read(Mode.WAITING, slack - pays)
        lost = (1 - stays_up) * lost_down + (stays_up - kept) * lost_up
        spot = billed(pays) + kept * tables.read(table, then, 1, Mode.SPOT, slack - pays) + lost
        wait = wait + self.MARGIN * job.changeover
        cheapest: Ints = np.stack([wait, np.where(now.spot_available, spot, np.inf), on_demand]).argmin(axis=0)
        return cheapest

    def _tables_for(self, job: DeadlineJob, available: Availability) -> Ints:
        """The index of each run's value table; those that are missing are computed."""
        grids = (self.UPTIMES, self.OUTAGES, self.FALLBACKS)
        if job != self._job:
            self._job, self._tables = job, None
            self._index = np.full([len(grid) for grid in grids], -1)
        values = (available.uptime, available.outage, available.fallback)
        at = (
            _nearest(np.log(self.UPTIMES), np.log(values[0])),
            _nearest(np.log(self.OUTAGES), np.log(values[1])),
            _nearest(self.FALLBACKS, values[2]),
        )
        missing = np.unique(np.stack(at)[:, self._index[at] < 0], axis=1)
        if missing.size:
            first = 0 if self._tables is None else len(self._tables.values)
            solved = solve(job, Availability(*(grid[index] for grid, index in zip(grids, missing, strict=True))))
            self._tables = solved if self._tables is None else self._tables.extended(solved)
            self._index[tuple(missing)] = first + np.arange(missing.shape[1])
        index: Ints = self._index[at]
        return index


def _nearest(grid: Floats, values: Floats) -> Ints:
    """Index of the grid's nearest value; the grid is sorted."""
    nearest: Ints = np.searchsorted((grid[1:] + grid[:-1]) / 2, values)
    return nearest


POLICIES: dict[str, Callable[[], Policy]] = {
    "adaptive": Adaptive,
    "uniform-progress": UniformProgress,
    "uniform-progress-0": lambda: UniformProgress(0.0),
    "uniform-progress-eager": lambda: UniformProgress(-math.inf),
    "greedy": Greedy,
}

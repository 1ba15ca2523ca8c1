# SPDX-License-Identifier: Apache-2.0
"""The expected cost of finishing a job in time, by backward induction; uptimes and outages are taken as exponential."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shoestring_core.decide.spot.deadline_job import ROUNDING, DeadlineJob, Floats, Ints, Mode

TIME_STEPS = 280
"""Of the grid, from the start to the deadline."""
SLACK_STEPS = 160
"""Of the grid, from no slack to that of the start."""

Table = NDArray[np.float32]


@dataclass(frozen=True)
class Availability:
    """What a value table is computed for; arrays of shape [tables].

    uptime    mean hours that a spot machine lasts
    outage    mean hours for which none can be had
    fallback  probability that another zone has one when it is lost
    """

    uptime: Floats
    outage: Floats
    fallback: Floats

    def transitions(self, hours: float) -> tuple[Floats, Floats, Floats]:
        """Probabilities, over so many hours: that a machine is kept, that spot stays available, and unavailable."""
        kept = np.exp(-hours / self.uptime)
        return kept, kept + (1 - kept) * self.fallback, np.exp(-hours / self.outage)


@dataclass(frozen=True)
class ValueTable:
    """Expected cost to the end, in hours of the spot price.

    values  [tables, time left, available or not, mode, slack]; slack: the time left minus the work left
    """

    values: Table
    time_step: float
    slack_step: float

    def extended(self, other: ValueTable) -> ValueTable:
        return replace(self, values=np.concatenate([self.values, other.values]))

    def read(self, table: Ints, time_left: float, available: int, mode: Mode, slack: Floats) -> Floats:
        """The values at a time and slack of each run, interpolated linearly. `table` and `slack`: shape [runs].

        The value is not continuous where the work ends, as any work left costs a changeover, nor where slack falls
        below the reserve. So rows are interpolated along whichever of work and slack is smaller, and what is nearer to
        the end than two rows and columns costs what these do, less what the difference costs on spot.
        """
        work, time = time_left - slack, max(time_left, 2 * self.time_step)
        counted = np.maximum(time - slack, 2 * self.slack_step)
        row = min(time / self.time_step, self.values.shape[1] - 1.001)
        along_work = counted < time - counted

        def read_row(index: int) -> Floats:
            at_slack = np.where(along_work, index * self.time_step, time) - counted
            column = np.clip(at_slack / self.slack_step, 0.0, self.values.shape[-1] - 1.001)
            at_column = column.astype(int)
            values = self.values[:, index, available, mode]
            left, right = values[table, at_column], values[table, at_column + 1]
            interpolated: Floats = left + (right - left) * (column - at_column)
            return interpolated

        between = row - int(row)
        value = read_row(int(row)) * (1 - between) + read_row(int(row) + 1) * between
        return np.where(work > ROUNDING, value - (counted - work), 0.0)


def solve(job: DeadlineJob, availability: Availability) -> ValueTable:
    """One table for each availability. Where slack is less than the job's reserve, nothing but on-demand is allowed."""
    time_step = job.deadline / TIME_STEPS
    slack_step = max((job.deadline - job.work) / SLACK_STEPS, job.changeover / 4, job.interval / 4)
    slack = np.arange(int((job.deadline - job.work) / slack_step) + 3) * slack_step
    tables = len(availability.uptime)
    values = np.zeros((tables, TIME_STEPS + 1, 2, len(Mode), len(slack)), np.float32)
    kept, stays_up, stays_down = (p[:, None].astype(np.float32) for p in availability.transitions(time_step))
    enough_slack = slack >= job.reserve + time_step
    starts_on_demand_in_time = slack >= job.changeover

    def later(expected: Table, delay: float) -> Table:
        """The expected cost after a delay, which takes slack."""
        column = np.maximum(np.arange(len(slack)) - delay / slack_step, 0.0)
        left = column.astype(int)
        right = np.minimum(left + 1, len(slack) - 1)
        weight = (column - left).astype(np.float32)
        shifted: Table = expected[:, left] * (1 - weight) + expected[:, right] * weight
        return shifted

    for step in range(1, TIME_STEPS + 1):
        work = np.maximum(step * time_step - slack, 0.0).astype(np.float32)
        down, up = values[:, step - 1, 0], values[:, step - 1, 1]
        billed = np.minimum(time_step, work)  # the work may end within the step
        billed_with_changeover = np.minimum(time_step, work + job.changeover)
        finish_on_demand = job.price_ratio * (work + job.changeover)
        for available in (0, 1):
            stays = stays_up if available else stays_down
            same, other = (up, down) if available else (down, up)
            after = stays[:, None] * same + (1 - stays[:, None]) * other  # in a mode that doesn't depend on it
            wait = np.where(enough_slack, later(after[:, Mode.WAITING], time_step), np.inf)
            on_demand = job.price_ratio * billed + after[:, Mode.ON_DEMAND]
            to_on_demand = np.where(
                starts_on_demand_in_time,
                job.price_ratio * billed_with_changeover + later(after[:, Mode.ON_DEMAND], job.changeover),
                finish_on_demand,
            )
            spot = to_spot = np.full_like(wait, np.inf)
            if available:
                lost = after[:, Mode.WAITING] - kept * up[:, Mode.WAITING]  # what follows a loss, times its probability
                on_spot = kept * up[:, Mode.SPOT] + lost
                spot = billed + on_spot
                to_spot = np.where(enough_slack, billed_with_changeover + later(on_spot, job.changeover), np.inf)
            best = {
                Mode.WAITING: np.minimum(np.minimum(wait, to_on_demand), to_spot),
                Mode.SPOT: np.minimum(np.minimum(wait, to_on_demand), spot),
                Mode.ON_DEMAND: np.minimum(np.minimum(wait, on_demand), to_spot),
            }
            for mode, cost in best.items():
                values[:, step, available, mode] = np.where(work <= 0, 0.0, cost)
    return ValueTable(values, time_step, slack_step)

# SPDX-License-Identifier: Apache-2.0
"""Runs of a job over recorded availability, many at once.

In each interval: a spot machine is lost if its zone has none; the policy wants a mode; the safety net may overrule it;
a machine that starts in another mode or after a loss pays its changeover first; the last interval is billed until the
work is done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shoestring_core.decide.spot.availability import AvailabilityHistory
from shoestring_core.decide.spot.deadline_job import (
    ROUNDING,
    Bools,
    DeadlineJob,
    Floats,
    Ints,
    Mode,
    RunStates,
)
from shoestring_core.decide.spot.policies import Policy, choose_modes


@dataclass(frozen=True)
class Outcome:
    """Arrays of shape [runs].

    cost         as a share of what the work costs on-demand, without its changeover
    missed       whether the work was not done at the deadline
    changeovers  machines started
    """

    cost: Floats
    missed: Bools
    changeovers: Ints


def simulate(job: DeadlineJob, policy: Policy, available: Bools, warm_up: int = 0) -> Outcome:
    """Run the job from its start to its end or deadline.

    available  [runs, warm_up + job.intervals, zones]
    warm_up    intervals before the start, which are only observed
    """
    runs, intervals, zones = available.shape
    if intervals != warm_up + job.intervals:
        raise ValueError(f"availability of {intervals} intervals, where the job takes {warm_up + job.intervals}")
    seen = AvailabilityHistory(runs, zones, job.interval)
    for interval in range(warm_up):
        seen.observe(available[:, interval])
    states, each = RunStates.at_start(runs, job), np.arange(runs)
    cost, changeovers = np.zeros(runs), np.zeros(runs, int)
    for interval in range(job.intervals):
        now = available[:, warm_up + interval]
        seen.observe(now)
        lost = (states.mode == Mode.SPOT) & ~now[each, states.zone]
        states.mode = np.where(lost, Mode.WAITING, states.mode)
        _, mode = choose_modes(job, policy, states, seen, job.time_left(interval))
        started = (mode != states.mode) & (mode != Mode.WAITING)
        states.zone = np.where(started & (mode == Mode.SPOT), seen.longest_lived_zones(), states.zone)
        states.changeover_left = np.where(started, job.changeover, states.changeover_left)
        states.mode = mode
        changeovers += started
        cost += _advance(job, states)
        if not (states.work_left > ROUNDING).any():
            break
    return Outcome(cost / (job.price_ratio * job.work), states.work_left > ROUNDING, changeovers)


def _advance(job: DeadlineJob, states: RunStates) -> Floats:
    """Train for an interval. Returns what it costs."""
    running = states.mode != Mode.WAITING
    needed = states.changeover_left + states.work_left
    used = np.where(running, np.minimum(job.interval, needed), 0.0)
    trained = np.where(running, np.maximum(0.0, used - states.changeover_left), 0.0)
    states.changeover_left = np.where(running, np.maximum(0.0, states.changeover_left - used), 0.0)
    states.work_left = states.work_left - trained
    return used * np.where(states.mode == Mode.ON_DEMAND, job.price_ratio, 1.0)

# SPDX-License-Identifier: Apache-2.0
"""Where a machine's cost went: training that was kept, and waste by its cause.

set_up         before its first step: boot, environment, data; and each time that ranks start again
idle           in no generation after the first: waiting for peers or orders, uploading, shutting down
lost_steps     training after the checkpoint that the next generation resumed from
failed_launch  a machine that ended before any step
training       the rest

A cost is split by time: machines are billed by it. So the parts add up to the bill, to the micro-dollar.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Cause = Literal["set_up", "idle", "lost_steps", "failed_launch"]
CAUSES: Sequence[Cause] = get_args(Cause)
Use = Cause | Literal["training"]


@dataclass(frozen=True)
class Stretch:
    """A generation that a machine was a member of. µs UTC.

    first_step_at  None: it ended before
    ended_at       None: it runs
    resumed_at     the step at which the job's next generation began; None: there is none
    """

    opened_at: int
    first_step_at: int | None
    ended_at: int | None
    start_step: int
    last_step: int | None
    resumed_at: int | None = None


@dataclass(frozen=True)
class MachineTime:
    """`until`: when it ended, or now. `stretches`: in the order of generations."""

    launched_at: int
    until: int
    ended: bool
    stretches: Sequence[Stretch]


def split_cost(cost: int, machine: MachineTime) -> dict[Use, int]:
    """Micro-dollars by what they were spent on; parts of nothing are left out."""
    times = _times(machine)
    total = sum(times.values())
    if cost <= 0 or total <= 0:
        return {"failed_launch" if machine.ended else "set_up": cost} if cost > 0 else {}
    parts: dict[Use, int] = {use: round(cost * time / total) for use, time in times.items() if time > 0}
    largest = max(parts, key=lambda use: parts[use])
    parts[largest] += cost - sum(parts.values())
    return parts


def add(reports: Iterable[Mapping[Use, int]]) -> dict[Use, int]:
    total: dict[Use, int] = {}
    for report in reports:
        for use, amount in report.items():
            total[use] = total.get(use, 0) + amount
    return total


def wasted(parts: Mapping[Use, int]) -> int:
    return sum(amount for use, amount in parts.items() if use != "training")


def _times(machine: MachineTime) -> dict[Use, float]:
    """µs of each use."""
    if not any(stretch.first_step_at is not None for stretch in machine.stretches):
        return {"failed_launch" if machine.ended else "set_up": machine.until - machine.launched_at}
    times: dict[Use, float] = dict.fromkeys((*CAUSES, "training"), 0)
    at = machine.launched_at

    def spend(use: Use, until: int) -> int:
        """Count the time since `at` for a use; returns it."""
        nonlocal at
        until = min(max(at, until), machine.until)
        passed, at = until - at, until
        times[use] += passed
        return passed

    for number, stretch in enumerate(machine.stretches):
        ended_at = machine.until if stretch.ended_at is None else stretch.ended_at
        spend("idle" if number else "set_up", stretch.opened_at)
        spend("set_up", ended_at if stretch.first_step_at is None else stretch.first_step_at)
        lost = spend("training", ended_at) * _lost_share(stretch)
        times["training"] -= lost
        times["lost_steps"] += lost
    spend("idle", machine.until)
    return times


def _lost_share(stretch: Stretch) -> float:
    """The share of its steps that were recomputed later."""
    if stretch.last_step is None or stretch.resumed_at is None or stretch.last_step <= stretch.start_step:
        return 0.0
    lost = stretch.last_step - max(stretch.resumed_at, stretch.start_step)
    return max(0, lost) / (stretch.last_step - stretch.start_step)

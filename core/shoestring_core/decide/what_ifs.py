# SPDX-License-Identifier: Apache-2.0
"""What-ifs: the schedule to come with other limits, weights or jobs. Nothing is changed by asking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from shoestring_core.decide.deadlines import Market, requirements_for
from shoestring_core.decide.projection import SETTLING, CurrentRun, Projection, relaxed
from shoestring_core.decide.queue import QueuedJob, QueueSnapshot
from shoestring_core.spec.gpus import GpuChoice

MAX_CHANGES = 20
"""Budgets, and jobs, that one what-if changes."""


@dataclass(frozen=True)
class AccountChange:
    """`limit`: micro-dollars over all periods; None: there is none. Each is as it would be, changed or not."""

    limit: int | None
    weight: int


@dataclass(frozen=True)
class JobChange:
    """Of a queued job.

    first        before its member's other jobs
    any_machine  of any provider, place, type and market
    gpus         on machines with these, of any type; None: as it is
    deadline     another one than it has, µs UTC; None: as it is
    stop         it leaves the queue
    """

    first: bool = False
    any_machine: bool = False
    stop: bool = False
    gpus: tuple[GpuChoice, ...] | None = None
    deadline: int | None = None


@dataclass(frozen=True)
class Changes:
    accounts: Mapping[UUID, AccountChange] = field(default_factory=dict)
    jobs: Mapping[UUID, JobChange] = field(default_factory=dict)


@dataclass(frozen=True)
class Moves:
    """How many jobs start earlier, later, at all, and no more, and which running ones pause."""

    earlier: int
    later: int
    newly: int
    no_more: int
    paused: tuple[UUID, ...]


def apply_changes(
    snapshot: QueueSnapshot, runs: Sequence[CurrentRun], changes: Changes, now: int
) -> tuple[QueueSnapshot, list[CurrentRun], tuple[UUID, ...]]:
    """The queue and the running jobs as they would be, and the running jobs that would pause.

    A limit below what is spent and held leaves an overdraft, as in the ledger: the jobs that it pays for pause, and
    cost no more than is held for them.
    """
    balances = dict(snapshot.balances)
    for account, change in changes.accounts.items():
        if (balance := balances.get(account)) is not None:
            used = balance.posted + balance.held
            overdraft = 0 if change.limit is None else max(0, used - change.limit)
            balances[account] = replace(balance, limit=change.limit, weight=change.weight, overdraft=overdraft)
    overdrawn = {account for account in changes.accounts if account in balances and balances[account].overdraft}
    paused = tuple(run.job for run in runs if not overdrawn.isdisjoint(run.account_path))
    left = [
        replace(run, ends_at=now + SETTLING, cost=min(run.cost, run.held)) if run.job in paused else run for run in runs
    ]
    queue = _changed_queue(snapshot.queue, changes.jobs, now)
    return replace(snapshot, balances=balances, queue=queue), left, paused


def compare(before: Projection, after: Projection, paused: tuple[UUID, ...], jobs: Iterable[UUID]) -> Moves:
    """What moves, of these queued jobs."""
    earlier = later = newly = no_more = 0
    for job in jobs:
        one, other = before.starts.get(job), after.starts.get(job)
        if one and other:
            earlier, later = earlier + (other.at < one.at), later + (other.at > one.at)
        else:
            newly, no_more = newly + (other is not None), no_more + (one is not None)
    return Moves(earlier, later, newly, no_more, paused)


def _changed_queue(queue: tuple[QueuedJob, ...], changes: Mapping[UUID, JobChange], now: int) -> tuple[QueuedJob, ...]:
    changed = []
    for job in queue:
        change = changes.get(job.job, JobChange())
        if change.stop:
            continue
        requirements = relaxed(job.requirements) if change.any_machine else job.requirements
        if change.gpus is not None:
            requirements = replace(requirements, gpus=change.gpus, type=None)
        moved = replace(job, requirements=requirements, queued_at=0 if change.first else job.queued_at)
        changed.append(moved if change.deadline is None else _with_deadline(moved, change.deadline, now))
    return tuple(changed)


def _with_deadline(job: QueuedJob, deadline: int, now: int) -> QueuedJob:
    """It waits for spot machines, or starts on them, as long as the other deadline allows."""
    turn = job.deadline
    if turn is None or turn.case is None:
        return job
    case = replace(turn.case, now=now, plan=replace(turn.case.plan, deadline=deadline))
    must_start = case.on_demand_at <= now
    market: Market = "on_demand" if must_start else "wait" if turn.market == "on_demand" else turn.market
    zone = turn.zone if market == turn.market else ""
    requirements = requirements_for(job.requirements, case.plan, market, zone)
    return replace(job, requirements=requirements, deadline=replace(turn, market=market, zone=zone, case=case))

# SPDX-License-Identifier: Apache-2.0
"""The jobs that run now, as far as guaranteed rates and concurrency caps depend on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select

from shoestring_core import money
from shoestring_core.decide.queue import RunningJob
from shoestring_core.decide.quotas import Product
from shoestring_core.states import AttemptState, DesiredState, JobState
from shoestring_core.store.fleet import rows
from shoestring_core.store.tables import AccountRow, AttemptRow, DeadlineRow, GenerationRow, JobRow, MachineRow
from shoestring_core.store.transactions import Read


def load_running_jobs(db: Read) -> list[RunningJob]:
    """Those whose attempt is open and wanted, with their machines that are alive."""
    wanted = (
        AttemptRow.state == AttemptState.OPEN,
        AttemptRow.number == JobRow.attempt,
        JobRow.state.in_((JobState.LAUNCHING, JobState.RUNNING)),
        JobRow.desired_state == DesiredState.RUN,
    )
    machine = (MachineRow.provider, MachineRow.region, MachineRow.type, MachineRow.market, MachineRow.price)
    alive = (
        select(JobRow.id, JobRow.team_id, JobRow.attempt, JobRow.spec["limits"]["time"].as_float(), *machine)
        .join(AttemptRow, AttemptRow.job == JobRow.id)
        .join(MachineRow, (MachineRow.job == JobRow.id) & (MachineRow.attempt == JobRow.attempt))
        .where(*wanted, MachineRow.state.in_(rows.ALIVE))
        .order_by(JobRow.id)
    )
    generations = rows.group_by_job(
        db.sql.execute(
            select(
                GenerationRow.job,
                GenerationRow.attempt,
                GenerationRow.formed_at,
                GenerationRow.ended_at,
                GenerationRow.first_step_at,
            )
            .join(JobRow, GenerationRow.job == JobRow.id)
            .where(JobRow.state.in_((JobState.LAUNCHING, JobState.RUNNING)))
        )
    )
    # What is reserved for a deadline would not pay for starting again whenever others ask for room.
    with_deadline = set(db.sql.scalars(select(DeadlineRow.job).where(DeadlineRow.next_at.is_not(None))))
    teams = {UUID(row.owner): row.id for row in db.sql.execute(_TEAMS)}
    machines: dict[tuple[UUID, UUID, int, float | None], Counter[Product]] = {}
    rates: Counter[UUID] = Counter()
    for job, team, attempt, limit, provider, region, type_, market, price in db.sql.execute(alive):
        machines.setdefault((job, team, attempt, limit), Counter())[provider, region, type_, market] += 1
        rates[job] += money.cost(price, money.HOUR)
    return [
        RunningJob(
            job, attempt, teams[team], next(iter(its))[0], tuple(sorted(its.items())), rates[job],
            None if job in with_deadline else _began(generations[job], attempt),
            _ends_by(generations[job], limit, db.now),
        )
        for (job, team, attempt, limit), its in machines.items()
    ]  # fmt: skip


@dataclass(frozen=True)
class InUse:
    """What runs of an account."""

    jobs: int = 0
    gpus: int = 0


def load_in_use(db: Read) -> dict[str, InUse]:
    """The jobs and GPUs that count against concurrency caps, by the owners of teams' and members' accounts.

    A job counts until all its machines have ended, or are left to their provider: the next attempt doesn't wait for
    these. A machine that an open attempt lost counts too: it gets another.
    """
    gpus = MachineRow.offered_hardware["gpus"].as_integer()
    machine = (JobRow.team_id, JobRow.user_id, MachineRow.job, MachineRow.attempt, MachineRow.slot, gpus)
    machines = select(*machine).join(JobRow, JobRow.id == MachineRow.job)
    of_attempt = (AttemptRow.job == MachineRow.job) & (AttemptRow.number == MachineRow.attempt)
    attempts_open = machines.join(AttemptRow, of_attempt).where(AttemptRow.state == AttemptState.OPEN)
    slots: dict[tuple[UUID, int, int], int] = {}
    owners: dict[UUID, tuple[str, str]] = {}
    for query in (machines.where(rows.at_work()), attempts_open):
        for team, user, job, attempt, slot, of_machine in db.sql.execute(query):
            owners[job] = str(team), f"{team}/{user}"
            slots[job, attempt, slot] = max(slots.get((job, attempt, slot), 0), of_machine or 0)
    jobs = Counter(owner for both in owners.values() for owner in both)
    has: Counter[str] = Counter()
    for (job, _, _), number in slots.items():
        has.update(dict.fromkeys(owners[job], number))
    return {owner: InUse(number, has[owner]) for owner, number in jobs.items()}


def _began(generations: Iterable[GenerationRow], attempt: int) -> int | None:
    """When the first step of an attempt was done."""
    steps = [row.first_step_at for row in generations if row.attempt == attempt and row.first_step_at is not None]
    return min(steps, default=None)


def _ends_by(generations: Iterable[GenerationRow], limit_s: float | None, now: int) -> int | None:
    """When the time limit of a job ends it, if it keeps training."""
    if limit_s is None:
        return None
    trained = sum((row.ended_at or now) - row.formed_at for row in generations if row.formed_at is not None)
    return max(now, now + round(limit_s * 1e6) - trained)


_TEAMS = select(AccountRow.owner, AccountRow.id).where(AccountRow.kind == "team")

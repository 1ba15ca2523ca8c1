# SPDX-License-Identifier: Apache-2.0
"""The rows that a page about jobs is made of, loaded for many jobs at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import func, select

from shoestring_core.store.db import Read
from shoestring_core.store.tables import (
    Account,
    Attempt,
    Event,
    Generation,
    Job,
    Key,
    Machine,
    Service,
    Team,
    Transfer,
    User,
)


@dataclass
class JobRows:
    """A job and what belongs to it. `posted` is what the ledger has of each machine, in micro-dollars."""

    job: Job
    team: str
    user: str
    account: Account | None
    generations: list[Generation] = field(default_factory=list)
    machines: list[Machine] = field(default_factory=list)
    posted: dict[UUID, int] = field(default_factory=dict)


def of_jobs(db: Read, jobs: Sequence[Job]) -> list[JobRows]:
    """In the order given."""
    ids = [job.id for job in jobs]
    teams, users = _names(db, Team, {job.team_id for job in jobs}), _names(db, User, {job.user_id for job in jobs})
    owners = [str(job) for job in ids]
    accounts = {
        row.owner: row
        for row in db.sql.scalars(select(Account).where(Account.kind == "job", Account.owner.in_(owners)))
    }
    rows = {job.id: JobRows(job, teams[job.team_id], users[job.user_id], accounts.get(str(job.id))) for job in jobs}
    for generation in db.sql.scalars(select(Generation).where(Generation.job.in_(ids)).order_by(Generation.no)):
        rows[generation.job].generations.append(generation)
    for machine in db.sql.scalars(
        select(Machine).where(Machine.job.in_(ids)).order_by(Machine.attempt, Machine.ordinal)
    ):
        rows[machine.job].machines.append(machine)
    for job, machine_id, amount in _posted(db, list(accounts.values())):
        rows[job].posted[machine_id] = rows[job].posted.get(machine_id, 0) + amount
    return list(rows.values())


def attempts(db: Read, job: UUID) -> list[Attempt]:
    return list(db.sql.scalars(select(Attempt).where(Attempt.job == job).order_by(Attempt.no)))


def accounts(db: Read, ids: Iterable[UUID]) -> dict[UUID, Account]:
    return {row.id: row for row in db.sql.scalars(select(Account).where(Account.id.in_(set(ids))))}


def machines(db: Read, job: UUID) -> list[Machine]:
    return list(db.sql.scalars(select(Machine).where(Machine.job == job)))


def posted(db: Read, machine: Machine) -> dict[UUID, int]:
    """What the ledger has of a machine, micro-dollars."""
    account = db.sql.scalar(select(Account).where(Account.kind == "job", Account.owner == str(machine.job)))
    charged = _posted(db, [account] if account else [])
    return {machine.id: sum(amount for _, id_, amount in charged if id_ == machine.id)}


def job_events(db: Read, job: Job, after: int, limit: int) -> list[Event]:
    """What people read of a job's feed: not each batch."""
    query = select(Event).where(
        Event.team == job.team_id, Event.job == job.id, Event.seq > after, Event.kind != "batch"
    )
    return list(db.sql.scalars(query.order_by(Event.seq).limit(limit)))


def keys(db: Read, team: UUID, user: UUID) -> list[Key]:
    """The API keys of a user in a team; no one-time codes."""
    query = select(Key).where(Key.team_id == team, Key.user_id == user, Key.kind != "login")
    return list(db.sql.scalars(query.order_by(Key.created_at)))


def machine(db: Read, team: UUID, machine_id: UUID) -> Machine | None:
    """A machine of the team's."""
    query = select(Machine).join(Job, Job.id == Machine.job).where(Machine.id == machine_id, Job.team_id == team)
    return db.sql.scalar(query)


def job_of(db: Read, machine_id: UUID) -> Job | None:
    """The job that a machine was rented for."""
    return db.sql.scalar(select(Job).join(Machine, Machine.job == Job.id).where(Machine.id == machine_id))


def teams(db: Read) -> list[UUID]:
    return list(db.sql.scalars(select(Team.id)))


def services(db: Read) -> dict[str, Service]:
    return {row.name: row for row in db.sql.scalars(select(Service))}


def states(db: Read) -> tuple[dict[str, int], dict[str, int]]:
    """How many jobs and machines are in each state."""
    jobs = db.sql.execute(select(Job.state, func.count()).group_by(Job.state))
    machines = db.sql.execute(select(Machine.state, func.count()).group_by(Machine.state))
    return dict(jobs.all()), dict(machines.all())


def _names(db: Read, table: type[Team] | type[User], ids: set[UUID]) -> dict[UUID, str]:
    return dict(db.sql.execute(select(table.id, table.name).where(table.id.in_(ids))).all())


def _posted(db: Read, accounts: Sequence[Account]) -> Iterable[tuple[UUID, UUID, int]]:
    """(job, machine, micro-dollars) of what the jobs' accounts were charged, and with a minus what they got back."""
    jobs = {account.id: UUID(account.owner) for account in accounts}
    for side, sign in ((Transfer.debit, 1), (Transfer.credit, -1)):
        query = select(side, Transfer.machine, func.sum(Transfer.amount)).where(
            side.in_(jobs), Transfer.machine.is_not(None)
        )
        for account, machine_id, amount in db.sql.execute(query.group_by(side, Transfer.machine)):
            if machine_id is not None:
                yield jobs[account], machine_id, sign * int(amount)

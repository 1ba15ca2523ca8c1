# SPDX-License-Identifier: Apache-2.0
"""Read queries of the API: the rows of many jobs at once, and what its other pages show."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import Select, bindparam, func, select

from shoestring_core.spec import has_deadline
from shoestring_core.states import JobState
from shoestring_core.store import ledger
from shoestring_core.store.budget_waits import load_budget_waits
from shoestring_core.store.deadlines import load_kept
from shoestring_core.store.identity import Principal
from shoestring_core.store.jobs import NewJob
from shoestring_core.store.tables import (
    AccountRow,
    AttemptRow,
    EventRow,
    GenerationRow,
    JobRow,
    KeyRow,
    MachineRow,
    ServiceRow,
    TeamRow,
    TransferRow,
    UserRow,
)
from shoestring_core.store.transactions import Read
from shoestring_core.wording.deadlines import DeadlineKept, DeadlinePromised
from shoestring_core.wording.waits import BudgetOverdrawn, BudgetShort

MAX_QUEUE_POSITION = 100
"""Jobs further back in the queue have no number, so that reading a job costs the same however long the queue is."""


@dataclass
class JobRows:
    """A job and its rows.

    posted          what the ledger has of each machine, in micro-dollars
    queue_position  its place among its member's queued jobs, from 1; None: it isn't queued, or far back
    budget_wait     the budget that it waits for, in the queue or paused, and what that lacks now
    deadline        what is promised, or done now, to keep its deadline; None: it has none, or has ended
    """

    job: JobRow
    team: str
    user: str
    account: AccountRow | None
    generations: list[GenerationRow] = field(default_factory=list)
    machines: list[MachineRow] = field(default_factory=list)
    posted: dict[UUID, int] = field(default_factory=dict)
    queue_position: int | None = None
    budget_wait: BudgetOverdrawn | BudgetShort | None = None
    deadline: DeadlinePromised | DeadlineKept | None = None


def load_job_rows(db: Read, jobs: Sequence[JobRow]) -> list[JobRows]:
    """The rows of each job, in the order given."""
    ids = [job.id for job in jobs]
    names = {row.id: row for row in db.rows(_NAMES, jobs=ids)}
    accounts = {row.id: row for row in ledger.accounts_upward(db, "job", [str(job) for job in ids])}
    leaves = {UUID(row.owner): row for row in accounts.values() if row.kind == "job"}
    rows = {job.id: JobRows(job, names[job.id].team, names[job.id].user, leaves.get(job.id)) for job in jobs}
    if started := [job.id for job in jobs if job.attempt]:
        _add_attempts(db, rows, started, [leaves[job] for job in started if job in leaves])
    _add_waits(db, rows, accounts)
    open_jobs = [job for job in jobs if job.state != JobState.ENDED and has_deadline(job.spec)]
    for id_, kept in load_kept(db, open_jobs).items():
        rows[id_].deadline = kept
    return list(rows.values())


def rows_of_new_job(db: Read, new: NewJob, principal: Principal) -> JobRows:
    """The rows of a job that the principal has queued in this transaction: nothing that it wrote is read again."""
    account, position = new.accounts[0], next(db.once(_new_positions, principal.team, principal.user))
    rows = JobRows(new.job, principal.team_name, principal.user_name, account, deadline=new.promise)
    rows.queue_position = position if position <= MAX_QUEUE_POSITION else None
    _add_budget_waits(db, {new.job.id: rows}, {account.id: account for account in new.accounts})
    return rows


def load_jobs(db: Read, ids: Iterable[UUID]) -> list[JobRow]:
    """Those of the jobs that exist, in the order of their submission."""
    return list(db.sql.scalars(_JOBS, {"jobs": list(ids)}))


def load_user_names(db: Read, users: Iterable[UUID]) -> dict[UUID, str]:
    return {row.id: row.name for row in db.sql.scalars(select(UserRow).where(UserRow.id.in_(set(users))))}


def load_teams_of(db: Read, jobs: Iterable[UUID]) -> dict[UUID, UUID]:
    """The team of each job."""
    return dict(db.sql.execute(select(JobRow.id, JobRow.team_id).where(JobRow.id.in_(set(jobs)))).all())


def load_attempts(db: Read, job: UUID) -> list[AttemptRow]:
    return list(db.sql.scalars(select(AttemptRow).where(AttemptRow.job == job).order_by(AttemptRow.number)))


def load_accounts(db: Read, ids: Iterable[UUID]) -> dict[UUID, AccountRow]:
    return {row.id: row for row in db.sql.scalars(select(AccountRow).where(AccountRow.id.in_(set(ids))))}


def load_machines(db: Read, job: UUID) -> list[MachineRow]:
    return list(db.sql.scalars(select(MachineRow).where(MachineRow.job == job)))


def load_posted(db: Read, machine: MachineRow) -> dict[UUID, int]:
    """What the ledger has of a machine, micro-dollars."""
    account = db.sql.scalar(select(AccountRow).where(AccountRow.kind == "job", AccountRow.owner == str(machine.job)))
    charged = _posted(db, [account] if account else [])
    return {machine.id: sum(amount for _, id_, amount in charged if id_ == machine.id)}


def load_job_events(db: Read, job: JobRow, after: int, limit: int) -> list[EventRow]:
    """A job's events past `after`, without those about batches."""
    query = select(EventRow).where(
        EventRow.team == job.team_id, EventRow.job == job.id, EventRow.seq > after, EventRow.kind != "batch"
    )
    return list(db.sql.scalars(query.order_by(EventRow.seq).limit(limit)))


def load_keys(db: Read, team: UUID, user: UUID) -> list[KeyRow]:
    """The API keys of a user in a team; no one-time codes."""
    query = select(KeyRow).where(KeyRow.team_id == team, KeyRow.user_id == user, KeyRow.kind != "login")
    return list(db.sql.scalars(query.order_by(KeyRow.created_at)))


def load_machine(db: Read, team: UUID, machine_id: UUID) -> MachineRow | None:
    """A machine of the team; None for any other."""
    query = (
        select(MachineRow)
        .join(JobRow, JobRow.id == MachineRow.job)
        .where(MachineRow.id == machine_id, JobRow.team_id == team)
    )
    return db.sql.scalar(query)


def load_job_of_machine(db: Read, machine_id: UUID) -> JobRow | None:
    """The job that a machine was rented for."""
    return db.sql.scalar(
        select(JobRow).join(MachineRow, MachineRow.job == JobRow.id).where(MachineRow.id == machine_id)
    )


def load_team_ids(db: Read) -> list[UUID]:
    return list(db.sql.scalars(select(TeamRow.id)))


def load_services(db: Read) -> dict[str, ServiceRow]:
    return {row.name: row for row in db.sql.scalars(select(ServiceRow))}


def count_by_state(db: Read) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of jobs and of machines by state."""
    jobs = db.sql.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
    machines = db.sql.execute(select(MachineRow.state, func.count()).group_by(MachineRow.state))
    return dict(jobs.all()), dict(machines.all())


def _add_waits(db: Read, rows: dict[UUID, JobRows], accounts: Mapping[UUID, AccountRow]) -> None:
    """Add the places in the queue, and what jobs wait for that no schedule has written. accounts: as in `NewJob`."""
    jobs = [row.job for row in rows.values()]
    for team, user in {(job.team_id, job.user_id) for job in jobs if job.state == JobState.QUEUED}:
        for job, position in db.rows(_POSITIONS, team=team, user=user, jobs=list(rows)):
            rows[job].queue_position = position
    _add_budget_waits(db, rows, accounts)


def _add_budget_waits(db: Read, rows: dict[UUID, JobRows], accounts: Mapping[UUID, AccountRow]) -> None:
    leaves = {id_: row.account for id_, row in rows.items() if row.account is not None}
    for job, wait in load_budget_waits(db, [row.job for row in rows.values()], leaves, accounts).items():
        rows[job].budget_wait = wait


def _new_positions(db: Read, team: UUID, user: UUID) -> Iterator[int]:
    """The places in their member's queue of the jobs that a transaction adds to it, one after the other."""
    ((before,),) = db.rows(_QUEUED, team=team, user=user, now=db.now)
    return itertools.count(before + 1)


def _add_attempts(db: Read, rows: dict[UUID, JobRows], started: list[UUID], accounts: list[AccountRow]) -> None:
    """Add what only jobs have that had an attempt."""
    generations = select(GenerationRow).where(GenerationRow.job.in_(started)).order_by(GenerationRow.number)
    for generation in db.sql.scalars(generations):
        rows[generation.job].generations.append(generation)
    machines = select(MachineRow).where(MachineRow.job.in_(started)).order_by(MachineRow.attempt, MachineRow.ordinal)
    for machine in db.sql.scalars(machines):
        rows[machine.job].machines.append(machine)
    for job, machine_id, amount in _posted(db, accounts):
        rows[job].posted[machine_id] = rows[job].posted.get(machine_id, 0) + amount


def _positions() -> Select[UUID, int]:
    """Positions of jobs in a member's queue: counted when somebody reads them, and at most so many."""
    first = (JobRow.queued_at, JobRow.id)
    queued = select(JobRow.id, func.row_number().over(order_by=first).label("position")).where(*_QUEUED_BY_MEMBER)
    head = queued.order_by(*first).limit(MAX_QUEUE_POSITION).subquery()
    return select(head.c.id, head.c.position).where(head.c.id.in_(bindparam("jobs", expanding=True)))


_QUEUED_BY_MEMBER = (
    JobRow.state == "queued",
    JobRow.team_id == bindparam("team"),
    JobRow.user_id == bindparam("user"),
)
_POSITIONS = _positions()
_QUEUED = select(func.count()).select_from(
    select(JobRow.id)
    .where(*_QUEUED_BY_MEMBER, JobRow.queued_at < bindparam("now"))  # not those that it has written already
    .limit(MAX_QUEUE_POSITION)
    .subquery()
)
_JOBS = select(JobRow).where(JobRow.id.in_(bindparam("jobs", expanding=True))).order_by(JobRow.id)
_NAMES = (
    select(JobRow.id, TeamRow.name.label("team"), UserRow.name.label("user"))
    .join_from(JobRow, TeamRow, TeamRow.id == JobRow.team_id)
    .join(UserRow, UserRow.id == JobRow.user_id)
    .where(JobRow.id.in_(bindparam("jobs", expanding=True)))
)


def _posted(db: Read, accounts: Sequence[AccountRow]) -> Iterable[tuple[UUID, UUID, int]]:
    """(job, machine, micro-dollars) of what the jobs' accounts were charged, and with a minus what they got back."""
    jobs = {account.id: UUID(account.owner) for account in accounts}
    for side, sign in ((TransferRow.debit_account, 1), (TransferRow.credit_account, -1)):
        query = select(side, TransferRow.machine, func.sum(TransferRow.amount)).where(
            side.in_(jobs), TransferRow.machine.is_not(None)
        )
        for account, machine_id, amount in db.sql.execute(query.group_by(side, TransferRow.machine)):
            if machine_id is not None:
                yield jobs[account], machine_id, sign * int(amount)

# SPDX-License-Identifier: Apache-2.0
"""What the modules of the fleet share: its rows, read, claimed, changed under a guard, and told of in the feed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from sqlalchemy import Update, select, update

from shoestring_core.errors import AgentRefused
from shoestring_core.states import AttemptState, JobState, Want
from shoestring_core.store.db import Read, Write
from shoestring_core.store.tables import Account, Attempt, Job, Machine, Member

ALIVE = ("planned", "calling", "up", "ending")
"""States of machines that run, may run, or may yet be made to."""


def touched(db: Write, statement: Update) -> bool:
    """Run a guarded UPDATE; whether its guard still held."""
    return db.count(statement) == 1


def claim(db: Write, job_id: UUID) -> Job:
    """The job's row, which nobody else decides about until this transaction ends."""
    touched(db, update(Job).where(Job.id == job_id).values(generation=Job.generation))
    return job(db, job_id)


def job(db: Read, job_id: UUID) -> Job:
    return db.sql.scalars(select(Job).where(Job.id == job_id)).one()


def attempt(db: Read, job_id: UUID, number: int) -> Attempt:
    return db.sql.scalars(select(Attempt).where(Attempt.job == job_id, Attempt.no == number)).one()


def machine(db: Read, machine_id: UUID) -> Machine:
    """Raises AgentRefused: it is agents that may ask for a machine that doesn't exist."""
    found = db.sql.scalar(select(Machine).where(Machine.id == machine_id))
    if found is None:
        raise AgentRefused("No such machine.")
    return found


def gang(db: Read, job_id: UUID, attempt_no: int) -> list[Machine]:
    """The machines of an attempt that aren't dead."""
    return list(
        db.sql.scalars(
            select(Machine)
            .where(Machine.job == job_id, Machine.attempt == attempt_no, Machine.state.in_(ALIVE))
            .order_by(Machine.slot)
        )
    )


def members(db: Read, job_id: UUID, generation: int) -> list[Member]:
    """The members of a generation, by node rank."""
    found = select(Member).where(Member.job == job_id, Member.generation == generation)
    return list(db.sql.scalars(found.order_by(Member.node_rank)))


def wanted(job: Job, attempt: Attempt) -> bool:
    """Whether the machines of an attempt should run: it is open, and its job means to train in it."""
    return (
        job.attempt == attempt.no
        and attempt.state == AttemptState.OPEN
        and job.state in (JobState.LAUNCHING, JobState.RUNNING)
        and job.want == Want.RUN
    )


def elastic(job: Job) -> bool:
    """Whether the job's gang may lose machines and go on."""
    resources = job.spec["resources"]
    least = resources.get("min")
    return bool(least is not None and least < resources["nodes"])


def by_job(rows: Iterable[Any]) -> dict[UUID, list[Any]]:
    groups: dict[UUID, list[Any]] = defaultdict(list)
    for row in rows:
        groups[row.job].append(row)
    return groups


def account_path(leaf: Account, accounts: dict[UUID, Account]) -> tuple[UUID, ...]:
    """The accounts that pay for what a job's account pays, from that one up."""
    path = [leaf.id]
    while (parent := accounts[path[-1]].parent) is not None:
        path.append(parent)
    return tuple(path)


def machine_event(
    db: Write, job: Job, attempt: int, machine: UUID, state: str, *, reason: str = "", cause: str | None = None
) -> None:
    db.event(
        team=job.team_id,
        kind="machine",
        actor="fleet",
        reason=reason,
        job=job.id,
        attempt=attempt,
        ref=str(machine),
        data={"state": str(state)} | ({"cause": cause} if cause else {}),
    )


def generation_event(db: Write, job: Job, number: int, attempt: int, state: str, reason: str = "") -> None:
    db.event(
        team=job.team_id,
        kind="generation",
        actor="fleet",
        reason=reason,
        job=job.id,
        attempt=attempt,
        generation=number,
        data={"state": state},
    )

# SPDX-License-Identifier: Apache-2.0
"""What the modules of the fleet share: its rows, read, claimed, changed under a guard, and told of in the feed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from sqlalchemy import Update, select, update

from shoestring_core.errors import AgentRefused
from shoestring_core.states import AttemptState, DesiredState, JobState
from shoestring_core.store.db import Read, Write
from shoestring_core.store.tables import AccountRow, AttemptRow, JobRow, MachineRow, MemberRow

ALIVE = ("planned", "calling", "up", "ending")
"""States of machines that run, may run, or may yet be made to."""


def touched(db: Write, statement: Update) -> bool:
    """Run a guarded UPDATE; whether its guard still held."""
    return db.count(statement) == 1


def claim(db: Write, job_id: UUID) -> JobRow:
    """The job's row, which nobody else decides about until this transaction ends."""
    touched(db, update(JobRow).where(JobRow.id == job_id).values(generation=JobRow.generation))
    return job(db, job_id)


def job(db: Read, job_id: UUID) -> JobRow:
    return db.sql.scalars(select(JobRow).where(JobRow.id == job_id)).one()


def attempt(db: Read, job_id: UUID, number: int) -> AttemptRow:
    return db.sql.scalars(select(AttemptRow).where(AttemptRow.job == job_id, AttemptRow.no == number)).one()


def machine(db: Read, machine_id: UUID) -> MachineRow:
    """Raises AgentRefused: it is agents that may ask for a machine that doesn't exist."""
    found = db.sql.scalar(select(MachineRow).where(MachineRow.id == machine_id))
    if found is None:
        raise AgentRefused("No such machine.")
    return found


def gang(db: Read, job_id: UUID, attempt_no: int) -> list[MachineRow]:
    """The machines of an attempt that aren't dead."""
    return list(
        db.sql.scalars(
            select(MachineRow)
            .where(MachineRow.job == job_id, MachineRow.attempt == attempt_no, MachineRow.state.in_(ALIVE))
            .order_by(MachineRow.slot)
        )
    )


def members(db: Read, job_id: UUID, generation: int) -> list[MemberRow]:
    """The members of a generation, by node rank."""
    found = select(MemberRow).where(MemberRow.job == job_id, MemberRow.generation == generation)
    return list(db.sql.scalars(found.order_by(MemberRow.node_rank)))


def wanted(job: JobRow, attempt: AttemptRow) -> bool:
    """Whether the machines of an attempt should run: it is open, and its job means to train in it."""
    return (
        job.attempt == attempt.no
        and attempt.state == AttemptState.OPEN
        and job.state in (JobState.LAUNCHING, JobState.RUNNING)
        and job.desired_state == DesiredState.RUN
    )


def elastic(job: JobRow) -> bool:
    """Whether the job's gang may lose machines and go on."""
    resources = job.spec["resources"]
    least = resources.get("min")
    return bool(least is not None and least < resources["nodes"])


def by_job(rows: Iterable[Any]) -> dict[UUID, list[Any]]:
    groups: dict[UUID, list[Any]] = defaultdict(list)
    for row in rows:
        groups[row.job].append(row)
    return groups


def account_path(leaf: AccountRow, accounts: dict[UUID, AccountRow]) -> tuple[UUID, ...]:
    """The accounts that pay for what a job's account pays, from that one up."""
    path = [leaf.id]
    while (parent := accounts[path[-1]].parent) is not None:
        path.append(parent)
    return tuple(path)


def machine_event(
    db: Write, job: JobRow, attempt: int, machine: UUID, state: str, *, reason: str = "", cause: str | None = None
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


def generation_event(db: Write, job: JobRow, number: int, attempt: int, state: str, reason: str = "") -> None:
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

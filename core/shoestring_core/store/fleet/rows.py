# SPDX-License-Identifier: Apache-2.0
"""What the modules of the fleet share: rows loaded, locked, changed under a guard, and recorded in the feed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, Update, bindparam, func, select, update

from shoestring_core import wire
from shoestring_core.decide.offers import Hardware
from shoestring_core.decide.quotas import Product
from shoestring_core.errors import AgentRefused
from shoestring_core.events import GenerationChange, MachineChange
from shoestring_core.states import (
    MACHINE_TRANSITIONS,
    AttemptState,
    DesiredState,
    GenerationState,
    JobState,
    MachineState,
)
from shoestring_core.store.tables import AccountRow, AttemptRow, JobRow, MachineRow, MemberRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording import Reason

ALIVE = tuple(state for state, allowed in MACHINE_TRANSITIONS.items() if allowed)
"""States of machines that run, or may run without our knowledge, or may yet be launched."""

UNCLOSED = ("open", "closing")
"""States of attempts whose machines may be at work."""


def try_update(db: Write, statement: Update) -> bool:
    """Run a guarded UPDATE of one row. Returns whether its guard still held."""
    return db.execute(statement) == 1


def lock_job(db: Write, job_id: UUID) -> JobRow:
    """The job's row, locked until the end of the transaction: decisions about one job come one after the other."""
    db.execute(update(JobRow).where(JobRow.id == job_id).values(generation=JobRow.generation))
    return load_job(db, job_id)


def load_job(db: Read, job_id: UUID) -> JobRow:
    (job,) = db.values(JobRow, _JOB, job=job_id)
    return job


def load_attempt(db: Read, job_id: UUID, attempt_number: int) -> AttemptRow:
    (attempt,) = db.values(AttemptRow, _ATTEMPT, job=job_id, attempt=attempt_number)
    return attempt


def load_machine(db: Read, machine_id: UUID) -> MachineRow:
    """Raises AgentRefused: only agents may ask for a machine that doesn't exist."""
    found = db.values(MachineRow, _MACHINE, machine=machine_id)
    if not found:
        raise AgentRefused("No such machine.")
    return found[0]


def offered_hardware(machine: MachineRow) -> Hardware:
    """What the machine's type has, as its provider said; no GPU where it said nothing."""
    stored = machine.offered_hardware
    return Hardware(0, 0) if stored is None else wire.from_stored(Hardware, stored)


def load_gang(db: Read, job_id: UUID, attempt_number: int) -> list[MachineRow]:
    """The machines of an attempt that are alive, by slot."""
    return db.values(MachineRow, _GANG, job=job_id, attempt=attempt_number)


def count_alive(db: Read) -> dict[Product, int]:
    """The number of machines that are alive, by what they are."""
    product = (MachineRow.provider, MachineRow.region, MachineRow.type, MachineRow.market)
    alive = select(*product, func.count()).where(MachineRow.state.in_(ALIVE)).group_by(*product)
    return {(provider, region, type_, market): n for provider, region, type_, market, n in db.sql.execute(alive)}


def load_members(db: Read, job_id: UUID, generation: int) -> list[MemberRow]:
    """The members of a generation, by node rank."""
    members = select(MemberRow).where(MemberRow.job == job_id, MemberRow.generation == generation)
    return list(db.sql.scalars(members.order_by(MemberRow.node_rank)))


def is_wanted(job: JobRow, attempt: AttemptRow) -> bool:
    """Whether the machines of an attempt should run: it is open, and its job is to train in it."""
    return (
        job.attempt == attempt.number
        and attempt.state == AttemptState.OPEN
        and job.state in (JobState.LAUNCHING, JobState.RUNNING)
        and job.desired_state == DesiredState.RUN
    )


def at_work() -> ColumnElement[bool]:
    """Machines that may still work for their attempt.

    Those that are left to their provider live on and are paid for, but the work is over by their agents' word: their
    attempt is closed without waiting for their end, and the next one begins.
    """
    return MachineRow.state.in_(ALIVE) & MachineRow.left_until.is_(None)


def is_at_work(machine: Any) -> bool:
    """As `at_work`, of a row that has been read."""
    return machine.state in ALIVE and machine.left_until is None


def is_elastic(job: JobRow) -> bool:
    """Whether the job's gang may lose machines and continue."""
    resources = job.spec["resources"]
    least = resources.get("min")
    return bool(least is not None and least < resources["nodes"])


def group_by_job(rows: Iterable[Any]) -> dict[UUID, list[Any]]:
    groups: dict[UUID, list[Any]] = defaultdict(list)
    for row in rows:
        groups[row.job].append(row)
    return groups


def ancestor_ids(leaf: AccountRow, accounts: Mapping[UUID, AccountRow]) -> tuple[UUID, ...]:
    """The ids of an account and those above it, leaf first."""
    path = [leaf.id]
    while (parent := accounts[path[-1]].parent) is not None:
        path.append(parent)
    return tuple(path)


def record_machine_event(
    db: Write,
    job: JobRow,
    attempt: int,
    machine: UUID,
    state: MachineState | Literal["registered", "notice", "left"],
    *,
    reason: Reason | None = None,
    cause: str | None = None,
) -> None:
    change = MachineChange(machine=machine, state=state, cause=cause)
    db.event(change, team=job.team_id, actor="fleet", reason=reason, job=job.id, attempt=attempt)


_JOB = select(JobRow).where(JobRow.id == bindparam("job"))
_ATTEMPT = select(AttemptRow).where(AttemptRow.job == bindparam("job"), AttemptRow.number == bindparam("attempt"))
_MACHINE = select(MachineRow).where(MachineRow.id == bindparam("machine"))
_GANG = (
    select(MachineRow)
    .where(MachineRow.job == bindparam("job"), MachineRow.attempt == bindparam("attempt"), MachineRow.state.in_(ALIVE))
    .order_by(MachineRow.slot)
)


def record_generation_event(
    db: Write, job: JobRow, number: int, attempt: int, state: GenerationState, reason: Reason | None = None
) -> None:
    change = GenerationChange(state=state)
    db.event(change, team=job.team_id, actor="fleet", reason=reason, job=job.id, attempt=attempt, generation=number)

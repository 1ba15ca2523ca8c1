# SPDX-License-Identifier: Apache-2.0
"""Deadlines of jobs: opened with what is committed for them, closed when all is paid, and what was decided last."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy import select, update

from shoestring_core import money
from shoestring_core.decide import deadlines
from shoestring_core.decide.deadlines import Because, DeadlineCase, DeadlinePlan, DeadlineTurn, Market
from shoestring_core.decide.queue import QueuedJob
from shoestring_core.states import JobState
from shoestring_core.store import ledger
from shoestring_core.store.tables import DeadlineRow, JobRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording.deadlines import DeadlineKept

log = logging.getLogger(__name__)
T = TypeVar("T", DeadlinePlan, DeadlineCase)


def open_deadline(db: Write, job: UUID, account: UUID, plan: DeadlinePlan) -> None:
    """Commit the worst case of a new job. Raises BudgetExceeded."""
    db.insert(DeadlineRow(job=job, plan=plan.as_json(), next_at=db.now))
    ledger.commit_money(db, account, plan.worst_case)


def close_deadline(db: Write, job: UUID) -> None:
    """Give back what a job that has ended and is paid did not use."""
    closed = update(DeadlineRow).where(DeadlineRow.job == job, DeadlineRow.next_at.is_not(None))
    if db.execute(closed.values(next_at=None)) == 1:
        ledger.adjust_commitment(db, ledger.job_account(db, job).id, 0)


def decide_now(db: Write, job: UUID) -> None:
    """Decide about a job at once: it is resumed after a pause, and earlier decisions are out of date."""
    due = update(DeadlineRow).where(DeadlineRow.job == job, DeadlineRow.next_at.is_not(None))
    db.execute(due.values(next_at=db.now, market="wait", zone=""))


def load_kept(db: Read, jobs: Sequence[JobRow]) -> dict[UUID, DeadlineKept]:
    """What is done now to keep the deadlines of jobs that have one, as far as anything was decided yet."""
    if not jobs:
        return {}
    own = {job.id: job for job in jobs}
    found = select(DeadlineRow).where(DeadlineRow.job.in_(own), DeadlineRow.inputs.is_not(None))
    accounts = {row.owner: row.id for row in ledger.accounts_upward(db, "job", [str(job) for job in own])}
    committed = ledger.load_commitments(db, accounts.values())
    kept = {}
    for row in db.sql.scalars(found):
        if (case := _read(DeadlineCase, row.job, row.inputs)) is None:
            continue
        kept[row.job] = DeadlineKept(
            market=_MARKET.validate_python(row.market),
            waiting=own[row.job].state == JobState.QUEUED,
            on_demand_at=case.on_demand_at,
            deadline=case.plan.deadline,
            because=_BECAUSE.validate_python(row.because),
            committed=money.to_decimal(committed.get(accounts[str(row.job)], 0)),
        )
    return kept


def load_turns(db: Read) -> dict[UUID, tuple[DeadlinePlan, DeadlineTurn]]:
    """What was decided last about queued jobs, by job."""
    found = list(db.rows(_QUEUED))
    if not found:
        return {}
    accounts = {row.owner: row.id for row in ledger.accounts_upward(db, "job", [str(row.job) for row in found])}
    committed = ledger.load_commitments(db, accounts.values())
    turns = {}
    for row in found:
        if (plan := _read(DeadlinePlan, row.job, row.plan)) is not None:
            case, left = _read(DeadlineCase, row.job, row.inputs), committed.get(accounts[str(row.job)], 0)
            turns[row.job] = plan, DeadlineTurn(row.market if case else "wait", row.zone, case, left)
    return turns


def with_turn(job: QueuedJob, plan: DeadlinePlan, turn: DeadlineTurn) -> QueuedJob:
    requirements = deadlines.requirements_for(job.requirements, plan, turn.market, turn.zone)
    return replace(job, requirements=requirements, deadline=turn)


def _read(kind: type[T], job: UUID, stored: dict[str, Any] | None) -> T | None:
    """None if there is none, or it is damaged: that costs no other job its turn."""
    if stored is None:
        return None
    try:
        return kind.from_json(stored)
    except ValueError as damaged:
        log.error("the deadline of job %s can't be read: %s", job, damaged)
    return None


_MARKET: TypeAdapter[Market] = TypeAdapter(Market)
_BECAUSE: TypeAdapter[Because] = TypeAdapter(Because)
_QUEUED = (
    select(DeadlineRow.job, DeadlineRow.market, DeadlineRow.zone, DeadlineRow.inputs, DeadlineRow.plan)
    .join(JobRow, JobRow.id == DeadlineRow.job)
    .where(JobRow.state == "queued", DeadlineRow.next_at.is_not(None))
)

# SPDX-License-Identifier: Apache-2.0
"""The money of machines: holds extended, costs posted, final bills."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TypeVar
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import bindparam, exists, or_, select, text, update

from shoestring_core import money
from shoestring_core.decide import billing, funding
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.events import CostChange, StorageChange
from shoestring_core.spec import has_deadline, reserved_time_of_stored
from shoestring_core.store import deadlines, ledger
from shoestring_core.store.fleet import rows
from shoestring_core.store.tables import AccountRow, AttemptRow, HoldRow, JobRow, MachineRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording import Reason, bills
from shoestring_core.wording.jobs import StorageLost, StorageRestored

log = logging.getLogger(__name__)
T = TypeVar("T")


def load_fundings(db: Read, machines: Collection[UUID]) -> dict[UUID, funding.MachineFunding]:
    """The open holds of machines."""
    if not machines:
        return {}
    return {
        row.machine: funding.MachineFunding(row.rate_cap, row.amount - row.consumed, row.funded_until)
        for row in db.rows(_OPEN_HOLDS, machines=list(machines))
        if row.funded_until is not None
    }


def extend_funding(db: Write, machine_id: UUID, timeouts: Timeouts, storable_until: int | None = None) -> bool:
    """Extend a machine's hold if that is due; post its cost first. The agent gets the new lease after the commit.

    storable_until  as `funding.Storage.until`

    Raises BudgetExceeded: then nothing is changed, and its job must be stopped.
    """
    machine = rows.load_machine(db, machine_id)
    job, attempt = rows.load_job(db, machine.job), rows.load_attempt(db, machine.job, machine.attempt)
    now = load_fundings(db, [machine_id]).get(machine_id)
    if now is None or not rows.is_wanted(job, attempt) or machine.state not in ("planned", "launching", "running"):
        return False
    due = funding.due_extension(now, db.now, timeouts, storable_until)
    if due is None:
        return False
    funded = update(MachineRow).where(MachineRow.id == machine_id, MachineRow.funded_until == now.funded_until)
    if not rows.try_update(db, funded.values(funded_until=due.funded_until)):
        return False
    reserved = bool(reserved_time_of_stored(job.spec) or has_deadline(job.spec))
    ledger.extend_hold(
        db, machine_id, due.amount, due.funded_until, if_funded_until=now.funded_until, reserved=reserved
    )
    return True


def tell_storage(db: Write, job_id: UUID, attempt_number: int, problem: str, *, lost: bool) -> bool:
    """Tell a job that runs, once, that its checkpoints can't be stored for long (`lost`) or can again. Whether it was
    told. `problem`: as `Storage.problem`."""
    job, attempt = rows.lock_job(db, job_id), rows.load_attempt(db, job_id, attempt_number)
    if not rows.is_wanted(job, attempt) or bool(job.wait_detail) == lost:
        return False
    until = max((row.funded_until or db.now for row in rows.load_gang(db, job_id, attempt_number)), default=db.now)
    reason: Reason = StorageLost(problem, until) if lost else StorageRestored()
    told = {"wait_detail": reason.as_json() if lost else None}
    rows.try_update(db, update(JobRow).where(JobRow.id == job_id).values(told))
    db.event(
        StorageChange(lost=lost), team=job.team_id, actor="fleet", job=job_id, attempt=attempt_number, reason=reason,
    )  # fmt: skip
    return True


def post_cost(db: Write, machine_id: UUID) -> None:
    """Post what a running machine has cost so far, as far as its hold covers it."""
    machine = rows.load_machine(db, machine_id)
    if machine.state in ("running", "terminating"):
        ledger.settle(db, machine_id, billing.bill(evidence(machine), db.now), final=False)


def overdrawn_jobs(db: Read, job_ids: Collection[UUID]) -> dict[UUID, str]:
    """Jobs that draw on an account in overdraft, and its name: their machines can't be funded any further."""
    if not job_ids:
        return {}
    red = {row.id: row for row in db.sql.scalars(_IN_OVERDRAFT)}
    if not red:
        return {}
    of_these = (AccountRow.kind == "job") & AccountRow.owner.in_([str(job) for job in job_ids])
    shared = AccountRow.kind.in_(("org", "team", "member"))
    accounts = {row.id: row for row in db.sql.scalars(select(AccountRow).where(or_(shared, of_these)))}
    by_owner = {row.owner: row for row in accounts.values()}
    names: dict[UUID, str] = {}
    for job in job_ids:
        chain = rows.ancestor_ids(by_owner[str(job)], accounts)
        short = next((red[account] for account in chain if account in red), None)
        if short is not None:
            names[job] = ledger.title(db, short)
    return names


def load_unbilled(db: Read) -> list[UUID]:
    """Machines that have terminated, without their final bill."""
    return [machine for (machine,) in db.rows(_UNBILLED)]


def load_unsettled(db: Read) -> list[UUID]:
    """Jobs that have ended and may still cost something."""
    return [job for (job,) in db.rows(_UNSETTLED)]


def settle_machine(db: Write, machine_id: UUID) -> bool:
    """Post the final bill of a terminated machine, once. A transaction of its own: it may make an overdraft."""
    billed = update(MachineRow).where(
        MachineRow.id == machine_id, MachineRow.state == "terminated", MachineRow.billed_at.is_(None)
    )
    if not rows.try_update(db, billed.values(billed_at=db.now)):
        return False
    machine = rows.load_machine(db, machine_id)
    job, lines = rows.load_job(db, machine.job), billing.bill(evidence(machine), db.now)
    ledger.settle(db, machine_id, lines, final=True)
    db.event(
        CostChange(action="billed", machine=machine_id),
        team=job.team_id,
        actor="fleet",
        job=job.id,
        attempt=machine.attempt,
        reason=lines[0].reason if lines else bills.NeverRan(),
    )
    db.request_tick()
    return True


def settle_job(db: Write, job_id: UUID) -> bool:
    """A job that has ended is settled once each of its machines is billed or was never bought."""
    unpaid = exists(
        select(MachineRow.id).where(
            MachineRow.job == job_id, MachineRow.state != "never_launched", MachineRow.billed_at.is_(None)
        )
    )
    unclosed = exists(select(AttemptRow.number).where(AttemptRow.job == job_id, AttemptRow.state != "closed"))
    job = rows.load_job(db, job_id)
    settled = update(JobRow).where(
        JobRow.id == job_id, JobRow.state == "ended", JobRow.settled_at.is_(None), ~unpaid, ~unclosed
    )
    if not rows.try_update(db, settled.values(settled_at=db.now)):
        return False
    if has_deadline(job.spec):
        deadlines.close_deadline(db, job_id)
    change = CostChange(action="job_settled")
    db.event(change, team=job.team_id, actor="fleet", job=job_id, reason=bills.JobSettled())
    return True


def hourly_cost(machine: MachineRow) -> int:
    """Micro-dollars an hour at the price of its launch, with its disk and address."""
    rules = _stored(machine, _RULES, machine.billing, billing.BillingRules())
    return money.cost(billing.hourly(rules.extras, machine.price), money.HOUR)


def evidence(machine: MachineRow) -> billing.Evidence:
    """What the bill of a machine is made from."""
    return billing.Evidence(
        provider=machine.provider,
        type=machine.type,
        market=machine.market,
        price=machine.price,
        launched_at=machine.launched_at,
        ended_at=machine.ended_at,
        end_cause=machine.end_cause,
        clock_shift=machine.clock_shift,
        pending_until=machine.pending_until,
        price_changes=_stored(machine, _PRICE_CHANGES, machine.price_changes or (), ()),
        rules=_stored(machine, _RULES, machine.billing, billing.BillingRules()),
    )


def _stored(machine: MachineRow, kind: TypeAdapter[T], stored: object, without: T) -> T:
    """JSON of the row. What is damaged is as good as none, as JSON is that was cut off: it costs no other row."""
    try:
        return kind.validate_python(stored)
    except ValidationError as damaged:
        log.error("what the bill of machine %s is made from can't be read: %s", machine.id, damaged)
    return without


_RULES = TypeAdapter(billing.BillingRules)
_PRICE_CHANGES = TypeAdapter(tuple[billing.PriceChange, ...])
_OPEN_HOLDS = select(HoldRow.machine, HoldRow.rate_cap, HoldRow.amount, HoldRow.consumed, HoldRow.funded_until).where(
    HoldRow.machine.in_(bindparam("machines", expanding=True)), HoldRow.state == "open"
)
_IN_OVERDRAFT = select(AccountRow).where(text("overdraft > 0"))  # as its index has it, without a parameter
_UNBILLED = (
    select(MachineRow.id)
    .where(MachineRow.state == "terminated", MachineRow.billed_at.is_(None))
    .order_by(MachineRow.id)
)
_UNSETTLED = select(JobRow.id).where(JobRow.state == "ended", JobRow.settled_at.is_(None))

# SPDX-License-Identifier: Apache-2.0
"""The queue as the scheduler sees it, and its decisions recorded: attempts with their launch intents, and waits."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import func, insert, select, update

from shoestring_core.decide import failures, funding
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG
from shoestring_core.decide.schedule import AccountBalance, QueuedJob, QueueSnapshot, Start, Wait
from shoestring_core.decide.sizing import Choice
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.errors import InvalidSpec, StaleTransition
from shoestring_core.spec import JobSpec
from shoestring_core.states import AttemptState, JobState, MachineState
from shoestring_core.store import jobs, ledger
from shoestring_core.store.db import Read, Write
from shoestring_core.store.fleet import rows
from shoestring_core.store.ids import new_id
from shoestring_core.store.tables import AccountRow, AttemptRow, JobRow, MachineRow, SchedulerRow


def load_snapshot(db: Read, timeouts: Timeouts) -> QueueSnapshot:
    """What the scheduler decides from: the queue in order, the accounts that pay, the machines that are alive."""
    epoch = db.sql.scalar(select(SchedulerRow.epoch)) or 0
    queued = list(
        db.sql.scalars(
            select(JobRow)
            .where(JobRow.state == "queued", JobRow.desired_state == "run")
            .order_by(JobRow.queued_at, JobRow.id)
        )
    )
    if not queued:
        return QueueSnapshot(epoch, (), {}, {})
    ids = [job.id for job in queued]
    attempts = rows.group_by_job(
        db.sql.scalars(select(AttemptRow).where(AttemptRow.job.in_(ids)).order_by(AttemptRow.number))
    )
    machines = rows.group_by_job(db.sql.scalars(select(MachineRow).where(MachineRow.job.in_(ids))))
    accounts = {
        row.id: row for row in db.sql.scalars(select(AccountRow).where(AccountRow.kind.in_(("org", "team", "member"))))
    }
    leaves = {
        row.owner: row
        for row in db.sql.scalars(
            select(AccountRow).where(AccountRow.kind == "job", AccountRow.owner.in_([str(job) for job in ids]))
        )
    }
    accounts |= {row.id: row for row in leaves.values()}
    queue: list[QueuedJob] = []
    unreadable: dict[UUID, str] = {}
    for job in queued:
        path = rows.ancestor_ids(leaves[str(job.id)], accounts)
        try:
            queue.append(_queued_job(job, path, attempts[job.id], machines[job.id], timeouts))
        except (InvalidSpec, ValueError, KeyError) as failure:
            unreadable[job.id] = f"{type(failure).__name__}: {failure}"
    alive = (
        select(MachineRow.provider, func.count()).where(MachineRow.state.in_(rows.ALIVE)).group_by(MachineRow.provider)
    )
    slots_used = {provider: count for provider, count in db.sql.execute(alive).all()}  # noqa: C416 - these are rows
    balances = {row.id: _balance(db, row) for row in accounts.values()}
    return QueueSnapshot(epoch, tuple(queue), balances, slots_used, unreadable)


def apply_start(db: Write, start: Start, epoch: int, *, agent_url: str, deployment: str) -> list[UUID] | None:
    """Open the attempt: money held and an intent for each machine, all or none. None: another plan came first.

    Raises StaleTransition if the job is not queued any more, BudgetExceeded if its budget was used elsewhere.
    """
    next_epoch = update(SchedulerRow).where(SchedulerRow.epoch == epoch).values(epoch=epoch + 1)
    if not rows.try_update(db, next_epoch):
        return None
    job = rows.load_job(db, start.job)
    if start.attempt != job.attempt + (not start.reopened):
        raise StaleTransition(f"Job {start.job} has had another attempt since it was planned.")
    job = jobs.transition(
        db,
        job,
        JobState.LAUNCHING,
        actor="scheduler",
        attempt=start.attempt,
        wait_reason=None,
        wait_text=None,
        reason=f"attempt {start.attempt}: {start.nodes} × {start.offer.type} ({start.offer.market})",
    )
    _open_attempt(db, start, epoch)
    machines = [
        _insert_machine(db, job.id, start.attempt, slot, start.offer, start.funded_until, agent_url, deployment)
        for slot in range(start.nodes)
    ]
    account = ledger.job_account(db, job.id).id
    cap, until = start.offer.on_demand_price, start.funded_until
    ledger.place_holds(db, [ledger.HoldRequest(machine, account, cap, start.hold, until) for machine in machines])
    for machine in machines:
        rows.record_machine_event(db, job, start.attempt, machine, "planned")
    return machines


def apply_waits(db: Write, waits: Iterable[Wait]) -> None:
    """Record why jobs wait, where that has changed. A changed position in the queue is no event."""
    for wait in sorted(waits, key=lambda wait: wait.job):
        job = db.sql.get(JobRow, wait.job)
        if job is None or job.state != JobState.QUEUED or (job.wait_reason, job.wait_text) == (wait.reason, wait.text):
            continue
        changed = update(JobRow).where(JobRow.id == wait.job, JobRow.state == "queued")
        written = rows.try_update(db, changed.values(wait_reason=wait.reason, wait_text=wait.text))
        if written and job.wait_reason != wait.reason:
            db.event(
                team=job.team_id,
                kind="wait",
                actor="scheduler",
                reason=wait.text,
                job=job.id,
                data={"from": job.wait_reason, "to": wait.reason},
            )


def refill_slot(
    db: Write,
    job_id: UUID,
    attempt_number: int,
    slot: int,
    offer: Offer,
    *,
    agent_url: str,
    deployment: str,
    timeouts: Timeouts,
) -> UUID | None:
    """Insert another machine for a slot whose last one was never launched. None: no longer wanted, or already there.

    Raises BudgetExceeded.
    """
    job, attempt = rows.lock_job(db, job_id), rows.load_attempt(db, job_id, attempt_number)
    if not rows.is_wanted(job, attempt) or slot in {row.slot for row in rows.load_gang(db, job_id, attempt_number)}:
        return None
    until = db.now + timeouts.funding_lease
    machine = _insert_machine(db, job_id, attempt_number, slot, offer, until, agent_url, deployment)
    ledger.place_hold(
        db,
        machine=machine,
        account=ledger.job_account(db, job_id).id,
        rate_cap=offer.on_demand_price,
        amount=funding.initial_hold(offer.on_demand_price, timeouts),
        funded_until=until,
    )
    rows.record_machine_event(db, job, attempt_number, machine, "planned")
    return machine


def chosen_type(job: JobRow) -> str | None:
    """The type of machine that was chosen for a job; None: any will do."""
    return Choice.from_json(job.sizing["choice"]).type if job.sizing else None


def _queued_job(
    job: JobRow, path: tuple[UUID, ...], attempts: list[AttemptRow], machines: list[MachineRow], timeouts: Timeouts
) -> QueuedJob:
    spec = JobSpec.from_stored(job.spec)
    bought = {row.attempt for row in machines if row.launched_at is not None}
    last = attempts[-1] if attempts else None
    reopened = last is not None and last.number not in bought
    alive = sum(row.state in rows.ALIVE for row in machines)
    winding_down = last is not None and last.state != AttemptState.CLOSED
    return QueuedJob(
        job=job.id,
        nodes=spec.resources.nodes,
        provider=spec.resources.provider,
        spot=spec.resources.spot,
        type=chosen_type(job),
        account_path=path,
        attempt=job.attempt if reopened else job.attempt + 1,
        reopened=reopened,
        terminating_machines=alive or int(winding_down),
        not_before=_not_before(attempts, timeouts),
        backoff_text="The last attempt ended before its first step. It is retried with increasing delays.",
    )


CAPACITY_DELAY = 5 * S
"""Capacity that was missing a moment ago is still missing; half a gang is paid for while we retry."""


def _not_before(attempts: list[AttemptRow], timeouts: Timeouts) -> int:
    """When the next attempt may open: after a delay that grows with the attempts in a row that trained nothing."""
    failed = []
    for attempt in reversed(attempts):
        if attempt.trained or attempt.reason not in ("machine_lost", "not_ready", "capacity"):
            break
        failed.append(attempt)
    if not failed or failed[0].closed_at is None:
        return 0
    first = CAPACITY_DELAY if failed[0].reason == "capacity" else S // 2
    return failed[0].closed_at + failures.backoff(len(failed), timeouts, first)


def _open_attempt(db: Write, start: Start, epoch: int) -> None:
    opening = {
        "state": AttemptState.OPEN,
        "reason": None,
        "plan": start.inputs.as_json(),
        "scheduler_epoch": epoch + 1,
        "opened_at": db.now,
        "closed_at": None,
    }
    if start.reopened:
        same = update(AttemptRow).where(
            AttemptRow.job == start.job, AttemptRow.number == start.attempt, AttemptRow.state == "closed"
        )
        if not rows.try_update(db, same.values(**opening)):
            raise StaleTransition(f"attempt {start.attempt} of job {start.job} is not closed")
        return
    db.sql.execute(insert(AttemptRow).values(job=start.job, number=start.attempt, trained=False, **opening))


def _insert_machine(
    db: Write, job: UUID, attempt: int, slot: int, offer: Offer, funded_until: int, agent_url: str, deployment: str
) -> UUID:
    """Insert a machine row: one launch intent, with everything that the call will send but the boot token."""
    machine = new_id()
    last = db.sql.scalar(
        select(func.max(MachineRow.ordinal)).where(MachineRow.job == job, MachineRow.attempt == attempt)
    )
    launch = {
        "tags": {DEPLOYMENT_TAG: deployment, "job": str(job), "attempt": str(attempt), "slot": str(slot)},
        "type": offer.type,
        "market": offer.market,
        "price": offer.price,
        "user_data": {"server_url": agent_url, "machine": str(machine)},
    }
    db.sql.execute(
        insert(MachineRow).values(
            id=machine,
            job=job,
            attempt=attempt,
            ordinal=0 if last is None else last + 1,
            slot=slot,
            provider=offer.provider,
            region=offer.region,
            zone=offer.zone,
            type=offer.type,
            market=offer.market,
            price=offer.price,
            on_demand_price=offer.on_demand_price,
            launch_request=launch,
            state=MachineState.PLANNED,
            funded_until=funded_until,
            acked_seq=0,
            created_at=db.now,
        )
    )
    return machine


def _balance(db: Read, row: AccountRow) -> AccountBalance:
    name = "this job" if row.kind == "job" else ledger.title(db, row)
    return AccountBalance(row.id, name, row.limit_micro, row.posted, row.held, row.overdraft)

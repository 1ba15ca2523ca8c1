# SPDX-License-Identifier: Apache-2.0
"""Decisions of the scheduler, recorded: attempts opened, with a launch intent and a hold for each machine; or ended, to
make room."""

from __future__ import annotations

from dataclasses import asdict
from uuid import UUID

from sqlalchemy import func, insert, select, update

from shoestring_core.decide import funding
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import rank_offers, require_machines
from shoestring_core.decide.preemption import Eviction
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, PROVIDER_TAG
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.start import Start
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.errors import StaleTransition
from shoestring_core.launch_request import LaunchDisk, LaunchRequest
from shoestring_core.spec import JobSpec, has_data_in_s3, reserved_time_of_stored
from shoestring_core.states import AttemptState, JobState, MachineState, StopReason
from shoestring_core.store import jobs, ledger, transitions
from shoestring_core.store.fleet import queue, rows
from shoestring_core.store.fleet.offers import load_known
from shoestring_core.store.tables import AttemptRow, JobRow, MachineRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wire import BootData
from shoestring_core.wording.jobs import AttemptStarted, ScheduleOutdated
from shoestring_core.wording.machines import MachinePlanned


def record_start(
    db: Write, start: Start, plan_version: int, *, agent_url: str, deployment: str, ca: str = ""
) -> list[UUID] | None:
    """Open the attempt: money held and an intent for each machine, all or none. None: another plan came first.

    ca  see wire.BootData

    Raises StaleTransition if the job is not queued any more, BudgetExceeded if its budget was used elsewhere.
    """
    if not queue.advance_plan_version(db, plan_version):
        return None
    job = rows.load_job(db, start.job)
    if start.attempt != job.attempt + (not start.reopened):
        raise StaleTransition(ScheduleOutdated(str(start.job)))
    job = jobs.transition(
        db,
        job,
        JobState.LAUNCHING,
        actor="scheduler",
        attempt=start.attempt,
        reason=AttemptStarted(start.attempt, start.nodes, start.offer.type, start.offer.market),
    )
    _open_attempt(db, start, plan_version)
    machines = [
        _insert_machine(db, job, start.attempt, slot, start.offer, start.funded_until, agent_url, deployment, ca)
        for slot in range(start.nodes)
    ]
    account = ledger.job_account(db, job.id).id
    cap, until = start.offer.rate_cap, start.funded_until
    ledger.place_holds(db, [ledger.HoldRequest(machine, account, cap, start.hold, until) for machine in machines])
    for slot, machine in enumerate(machines):
        _record_planned(db, job, start.attempt, machine, slot, start.offer)
    return machines


def record_eviction(db: Write, eviction: Eviction, plan_version: int) -> bool:
    """End the job's attempt after a checkpoint; then it is queued again. False: another plan came first.

    Raises StaleTransition if the job does not run in this attempt any more.
    """
    if not queue.advance_plan_version(db, plan_version):
        return False
    job = rows.lock_job(db, eviction.job)
    if job.state != JobState.RUNNING or not rows.is_wanted(job, rows.load_attempt(db, job.id, eviction.attempt)):
        raise StaleTransition(ScheduleOutdated(str(job.id)))
    jobs.transition(
        db, job, JobState.STOPPING, actor="scheduler", reason=eviction.reason, stop_reason=StopReason.EVICTION
    )
    attempt = update(AttemptRow).where(AttemptRow.job == job.id, AttemptRow.number == eviction.attempt)
    db.execute(attempt.values(eviction=eviction.inputs.as_json()))
    return True


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
    ca: str = "",
    storable_until: int | None = None,
) -> UUID | None:
    """Insert another machine for a slot whose last one was never launched. None: no longer wanted, or already there, or
    there is no time left to store what it does.

    storable_until  as `funding.Storage.until`

    Raises BudgetExceeded.
    """
    job, attempt = rows.lock_job(db, job_id), rows.load_attempt(db, job_id, attempt_number)
    if not rows.is_wanted(job, attempt) or slot in {row.slot for row in rows.load_gang(db, job_id, attempt_number)}:
        return None
    until = funding.funded_until(db.now, timeouts, storable_until)
    if until <= db.now:
        return None
    machine = _insert_machine(db, job, attempt_number, slot, offer, until, agent_url, deployment, ca)
    ledger.place_hold(
        db,
        machine=machine,
        account=ledger.job_account(db, job_id).id,
        rate_cap=offer.rate_cap,
        amount=funding.initial_hold(offer.rate_cap, timeouts, offer.billing.minimum, reserved_time_of_stored(job.spec)),
        funded_until=until,
    )
    _record_planned(db, job, attempt_number, machine, slot, offer)
    return machine


def min_hold(db: Read, spec: JobSpec) -> int:
    """The least micro-dollars that a job's first machines hold, on the offers known now; 0 if none suits it.

    Raises InvalidSpec for more machines than there ever are, and for such as no provider has.
    """
    needed = Requirements.of(spec.resources, reserved_time=spec.reserved_time, rate=spec.limits.rate)
    known = db.once(load_known)
    placement = rank_offers(known.offers, needed)
    require_machines(placement, known.unanswered)
    return min((funding.hold_for(offer, needed, known.timeouts) for offer in placement.ranked), default=0)


def _open_attempt(db: Write, start: Start, plan_version: int) -> None:
    opening = {
        "reason": None,
        "plan": start.inputs.as_json(),
        "plan_version": plan_version + 1,
        "opened_at": db.now,
        "closed_at": None,
    }
    if start.reopened:
        reopened = transitions.move_attempt(start.job, start.attempt, AttemptState.OPEN)
        if not rows.try_update(db, reopened.values(**opening)):
            raise StaleTransition(ScheduleOutdated(str(start.job)))
        return
    first = {"job": start.job, "number": start.attempt, "state": AttemptState.OPEN, "trained": False}
    db.sql.execute(insert(AttemptRow).values(**first, **opening))


def _record_planned(db: Write, job: JobRow, attempt: int, machine: UUID, slot: int, offer: Offer) -> None:
    reason = MachinePlanned(slot, offer.type, offer.market, offer.zone or offer.region, offer.price)
    rows.record_machine_event(db, job, attempt, machine, MachineState.PLANNED, reason=reason)


def _insert_machine(
    db: Write,
    job: JobRow,
    attempt: int,
    slot: int,
    offer: Offer,
    funded_until: int,
    agent_url: str,
    deployment: str,
    ca: str,
) -> UUID:
    """Insert a machine row: one launch intent, with everything that the call will send but the boot token."""
    machine = uuid7()
    last = db.sql.scalar(
        select(func.max(MachineRow.ordinal)).where(MachineRow.job == job.id, MachineRow.attempt == attempt)
    )
    boot = BootData(server_url=agent_url, machine=machine, ca=ca)
    request = _launch_request(job, attempt, slot, offer, deployment, boot)
    db.sql.execute(
        insert(MachineRow).values(
            id=machine,
            job=job.id,
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
            simulated=offer.simulated,
            billing=asdict(offer.billing),
            offered_hardware=offer.hardware and asdict(offer.hardware),
            launch_request=request.as_json(),
            state=MachineState.PLANNED,
            funded_until=funded_until,
            acked_seq=0,
            created_at=db.now,
        )
    )
    return machine


def _launch_request(
    job: JobRow, attempt: int, slot: int, offer: Offer, deployment: str, boot: BootData
) -> LaunchRequest:
    group = _placement_group(job, attempt)
    return LaunchRequest(
        token=str(boot.machine),
        region=offer.region,
        zone=offer.zone,
        tags={
            DEPLOYMENT_TAG: deployment,
            PROVIDER_TAG: offer.provider,
            "job": str(job.id),
            "attempt": str(attempt),
            "slot": str(slot),
        },
        type=offer.type,
        market=offer.market,
        price=offer.price,
        user_data=boot,
        disk=LaunchDisk(offer.disk.gib, offer.disk.iops, offer.disk.mib_per_s) if offer.disk else None,
        placement_group=group,
        efa=bool(group and offer.hardware and offer.hardware.efa),
        data_role=offer.data_role if has_data_in_s3(job.spec) else None,
    )


def _placement_group(job: JobRow, attempt: int) -> str | None:
    """Of the attempt's machines, if the job wants them close together."""
    placement = (job.spec.get("resources") or {}).get("placement")
    return f"shoestring-{job.id}-{attempt}" if placement == "cluster" else None

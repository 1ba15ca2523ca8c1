# SPDX-License-Identifier: Apache-2.0
"""What the provider says about machines, and what is to be compared with it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import select, update

from shoestring_core.decide import reconcile
from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.states import MachineState
from shoestring_core.store.db import Read, Write
from shoestring_core.store.fleet import launches, records
from shoestring_core.store.tables import AttemptRow, JobRow, MachineRow


def record(db: Write, machine: UUID, seen: ProviderMachine, timeouts: Timeouts) -> None:
    """Write down what the provider says about a machine. Guarded by its id alone; the dead stay dead."""
    row = db.sql.get(MachineRow, machine)
    if row is None or row.state in (MachineState.TERMINATED, MachineState.VOID):
        return
    state = MachineState(row.state)
    if seen.state == "ended":
        state = MachineState.TERMINATED
    elif seen.state == "stopping":
        state = MachineState.ENDING
    elif state in (MachineState.PLANNED, MachineState.CALLING):
        state = MachineState.UP
    facts: dict[str, Any] = {"provider_id": seen.id, "launched_at": seen.launched_at, "state": state}
    if row.alive_until is None:
        facts["alive_until"] = db.now + timeouts.boot
    if state is MachineState.TERMINATED:
        ended_at = max(seen.ended_at or db.now, seen.launched_at)
        facts |= {"ended_at": ended_at, "end_cause": seen.end_cause, "end_evidence": "provider"}
    records.touched(
        db,
        update(MachineRow)
        .where(MachineRow.id == machine, MachineRow.state.not_in(("terminated", "void")))
        .values(**facts),
    )
    if state != row.state:
        records.machine_event(db, records.job(db, row.job), row.attempt, machine, state, cause=seen.end_cause)
        db.hint()


def presume_terminated(db: Write, machine: UUID) -> None:
    """Mark a machine terminated that the provider no longer knows; it ended with its funding at the latest."""
    row = db.sql.get(MachineRow, machine)
    if row is None or row.state not in ("up", "ending"):
        return
    last = max(row.launched_at or 0, min(db.now, row.funded_until or db.now))
    presumed = update(MachineRow).where(MachineRow.id == machine, MachineRow.state.in_(("up", "ending")))
    if records.touched(db, presumed.values(state=MachineState.TERMINATED, ended_at=last, end_evidence="inferred")):
        records.machine_event(
            db,
            records.job(db, row.job),
            row.attempt,
            machine,
            "terminated",
            reason="the provider does not know it any more",
        )
        db.hint()


def begin_termination(db: Write, machine: UUID, reason: str, *, lease: bool) -> bool:
    """Decide to end a machine through the provider. False: a report has renewed its lease in the meantime."""
    row = db.sql.get(MachineRow, machine)
    if row is None:
        return False
    if row.state == MachineState.ENDING:
        return True
    guarded = update(MachineRow).where(MachineRow.id == machine, MachineRow.state == "up")
    if lease:
        guarded = guarded.where(MachineRow.alive_until <= db.now)
    if not records.touched(db, guarded.values(state=MachineState.ENDING)):
        return False
    records.machine_event(db, records.job(db, row.job), row.attempt, machine, "ending", reason=reason)
    return True


def rows(db: Read) -> list[reconcile.TrackedMachine]:
    """Every machine that isn't dead, as the reconciler wants it."""
    found = db.sql.execute(
        select(MachineRow, AttemptRow, JobRow)
        .join(AttemptRow, (AttemptRow.job == MachineRow.job) & (AttemptRow.no == MachineRow.attempt))
        .join(JobRow, JobRow.id == MachineRow.job)
        .where(MachineRow.state.in_(records.ALIVE))
        .order_by(MachineRow.id)
    )
    return [_row(machine, attempt, job) for machine, attempt, job in found]


def _row(machine: MachineRow, attempt: AttemptRow, job: JobRow) -> reconcile.TrackedMachine:
    return reconcile.TrackedMachine(
        id=machine.id,
        provider=machine.provider,
        region=machine.region,
        state=MachineState(machine.state),
        provider_id=machine.provider_id,
        wanted=records.wanted(job, attempt),
        unwanted_since=attempt.closed_at or _NEVER,
        refused=machine.refusal not in (None, launches.UNKNOWN),
        registered=machine.registered_at is not None,
        call_by=machine.call_by or 0,
        alive_until=machine.alive_until,
        funded_until=machine.funded_until,
    )


_NEVER = 2**62

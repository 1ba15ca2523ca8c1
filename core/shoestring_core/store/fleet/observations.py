# SPDX-License-Identifier: Apache-2.0
"""Observations: what providers report about machines, and the rows to compare with it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.orm import defer, load_only

from shoestring_core.decide import reconcile
from shoestring_core.decide.billing import CLOCK_STEP, free_if_left_until
from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.states import JobState, MachineState
from shoestring_core.store import transitions
from shoestring_core.store.fleet import launches, rows
from shoestring_core.store.fleet.billing import evidence
from shoestring_core.store.tables import AttemptRow, CheckpointRow, JobRow, MachineRow, MemberRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording import Reason, machines

_WAS_LISTED = MachineRow.provider_id.is_not(None)


def record_observation(db: Write, machine: UUID, observed: ProviderMachine, timeouts: Timeouts) -> None:
    """Record what the provider reports about a machine. Guarded by its state alone: facts are never fenced."""
    row = db.sql.get(MachineRow, machine)
    if row is None or row.state not in rows.ALIVE:
        return
    facts: dict[str, Any] = {
        "provider_id": observed.id, "launched_at": observed.launched_at, "clock_shift": observed.clock_shift
    }  # fmt: skip
    if observed.image:
        facts["image"] = observed.image
    if observed.state == "pending":
        facts["pending_until"] = db.now
    if observed.state == "stopping" and row.stopping_at is None:
        facts["stopping_at"] = db.now
    if observed.price_changes:
        known = dict(row.price_changes or ()) | dict(observed.price_changes)
        facts["price_changes"] = [list(change) for change in sorted(known.items())]
    if row.alive_until is None or abs(observed.clock_shift - row.clock_shift) >= CLOCK_STEP:
        facts["alive_until"] = db.now + (timeouts.boot if row.registered_at is None else timeouts.machine_lease)
    if observed.end_cause is not None:  # EC2 reports why a machine ends before it has ended
        facts["end_cause"] = observed.end_cause
        if row.refused_at is None and (refused := RefusalKind.of_end(observed.end_cause)):
            facts |= {"refusal": refused, "refused_at": db.now}
    state = _observed_state(MachineState(row.state), observed)
    if state is MachineState.TERMINATED:
        ended_at = max(observed.ended_at or row.stopping_at or db.now, observed.launched_at)
        facts |= {"ended_at": ended_at, "end_evidence": "provider"}
    if state == row.state:
        rows.try_update(
            db, update(MachineRow).where(MachineRow.id == machine, MachineRow.state.in_(rows.ALIVE)).values(**facts)
        )
    elif rows.try_update(db, transitions.move_machine(machine, state).values(**facts)):
        job, cause = rows.load_job(db, row.job), observed.end_cause
        reason = machines.EndedByProvider(cause) if cause else None
        rows.record_machine_event(db, job, row.attempt, machine, state, reason=reason, cause=cause)
        db.request_tick()


def presume_terminated(db: Write, machine: UUID) -> None:
    """Mark a machine terminated that the provider no longer knows; it ended with its funding at the latest."""
    row = db.sql.get(MachineRow, machine)
    if row is None:
        return
    last = max(row.launched_at or 0, min(db.now, row.funded_until or db.now))
    presumed = transitions.move_machine(machine, MachineState.TERMINATED).where(_WAS_LISTED)
    if rows.try_update(db, presumed.values(ended_at=last, end_evidence="inferred")):
        job, reason = rows.load_job(db, row.job), machines.NoLongerListed()
        rows.record_machine_event(db, job, row.attempt, machine, MachineState.TERMINATED, reason=reason)
        db.request_tick()


def begin_termination(db: Write, machine: UUID, reason: Reason, *, lease: bool) -> bool:
    """Decide to terminate a machine through the provider. False: a report has renewed its lease in the meantime."""
    row = db.sql.get(MachineRow, machine)
    if row is None:
        return False
    if row.state == MachineState.TERMINATING:
        return True
    terminating = transitions.move_machine(machine, MachineState.TERMINATING).where(_WAS_LISTED)
    if lease:
        terminating = terminating.where(MachineRow.alive_until <= db.now)
    if not rows.try_update(db, terminating):
        return False
    job = rows.load_job(db, row.job)
    rows.record_machine_event(db, job, row.attempt, machine, MachineState.TERMINATING, reason=reason)
    return True


def load_regions_in_use(db: Read, provider: str, silent_since: int) -> dict[str, bool]:
    """The regions in which a provider has machines that are alive.

    True: one of them begins or ends, or may have ended: it has been silent since `silent_since` (µs UTC), as those are
    that boot, or the ranks of a machine have exited, as those do whose peers are lost.
    """
    regions: dict[str, bool] = {}
    asked = {"provider": provider, "silent_since": silent_since}
    for region, state, current, attempt, job, desired, silent, exited in db.sql.execute(_REGIONS, asked):
        wanted = current and attempt == "open" and job in ("launching", "running") and desired == "run"
        changes = state != MachineState.RUNNING or not wanted
        regions[region] = regions.get(region, False) or changes or bool(silent) or exited
    return regions


def load_tracked_machines(db: Read, provider: str, region: str | None = None) -> list[reconcile.TrackedMachine]:
    """Every machine of a provider that is alive, as the reconciler needs it. `region`: only those there."""
    tracked = _TRACKED if region is None else _TRACKED.where(MachineRow.region == region)
    alive = db.sql.execute(tracked, {"provider": provider})
    return [_tracked_machine(machine, attempt, job, save_ms or 0) for machine, attempt, job, save_ms in alive]


def _tracked_machine(machine: MachineRow, attempt: AttemptRow, job: JobRow, save_ms: int) -> reconcile.TrackedMachine:
    wanted, left_until = rows.is_wanted(job, attempt), None
    if not wanted and machine.notice_at is not None:  # few: only of these the rules are read
        left_until = free_if_left_until(evidence(machine), machine.notice_at)
    return reconcile.TrackedMachine(
        id=machine.id,
        region=machine.region,
        state=MachineState(machine.state),
        provider_id=machine.provider_id,
        wanted=wanted,
        unwanted_since=attempt.closed_at or _NEVER,
        refused=machine.refusal not in (None, launches.UNKNOWN),
        registered=machine.registered_at is not None,
        call_deadline=machine.call_deadline or 0,
        alive_until=machine.alive_until,
        funded_until=machine.funded_until,
        clock_shift=machine.clock_shift,
        priced_until=machine.price_changes[-1][0] if machine.price_changes else 0,
        left_until=left_until,
        save_time=1000 * save_ms,
    )


_NEVER = 2**62


def _observed_state(before: MachineState, observed: ProviderMachine) -> MachineState:
    if observed.state == "ended":
        return MachineState.TERMINATED
    if observed.state == "stopping":
        return MachineState.TERMINATING
    return MachineState.RUNNING if before in (MachineState.PLANNED, MachineState.LAUNCHING) else before


_REGIONS = (
    select(
        MachineRow.region,
        MachineRow.state,
        JobRow.attempt == AttemptRow.number,
        AttemptRow.state,
        JobRow.state,
        JobRow.desired_state,
        func.coalesce(MachineRow.last_report_at, MachineRow.launched_at) <= bindparam("silent_since"),
        MemberRow.exited_at.is_not(None),
    )
    .join(AttemptRow, (AttemptRow.job == MachineRow.job) & (AttemptRow.number == MachineRow.attempt))
    .join(JobRow, JobRow.id == MachineRow.job)
    .outerjoin(
        MemberRow,
        (MemberRow.job == JobRow.id)
        & (MemberRow.generation == JobRow.generation)
        & (MemberRow.machine == MachineRow.id),
    )
    .where(MachineRow.state.in_(rows.ALIVE), MachineRow.provider == bindparam("provider"))
    .distinct()
)
_TRACKED = (
    select(MachineRow, AttemptRow, JobRow, CheckpointRow.save_ms)
    .join(AttemptRow, (AttemptRow.job == MachineRow.job) & (AttemptRow.number == MachineRow.attempt))
    .join(JobRow, JobRow.id == MachineRow.job)
    .outerjoin(CheckpointRow, (CheckpointRow.id == JobRow.checkpoint) & (JobRow.state == JobState.STOPPING))
    .where(MachineRow.state.in_(rows.ALIVE), MachineRow.provider == bindparam("provider"))
    .order_by(MachineRow.id)
    .options(load_only(JobRow.attempt, JobRow.state, JobRow.desired_state))
    .options(load_only(AttemptRow.number, AttemptRow.state, AttemptRow.closed_at))
    .options(defer(MachineRow.launch_request), defer(MachineRow.billing), defer(MachineRow.hardware))
)

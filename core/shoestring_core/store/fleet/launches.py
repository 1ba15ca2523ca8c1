# SPDX-License-Identifier: Apache-2.0
"""Calls that rent machines: begun, answered, refused, unanswered, or given up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import exists, or_, select, update

from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.states import MachineState
from shoestring_core.store import ledger
from shoestring_core.store.db import Read, Write
from shoestring_core.store.fleet import records
from shoestring_core.store.tables import AttemptRow, JobRow, MachineRow

UNKNOWN = "unknown"
"""In place of a refusal: a call ended without an answer, so the machine may exist."""


@dataclass(frozen=True)
class Launch:
    """What the launcher sends, and until when it may. The same bytes each time, once the boot token is filled in."""

    machine: UUID
    provider: str
    region: str
    zone: str
    request: dict[str, Any]
    call_by: int
    """Fences the answer: only the call that still holds the row may say that it was refused."""
    window: int
    """µs from now until `call_by`."""


def to_launch(db: Read) -> list[UUID]:
    """Machines that a launcher should call for now: wanted, and no call under way."""
    return list(db.sql.scalars(select(MachineRow.id).where(_callable(db.now), _is_wanted()).order_by(MachineRow.id)))


def begin_call(db: Write, machine: UUID, timeouts: Timeouts) -> Launch | None:
    """Say that a provider call is about to be made. None: it isn't wanted, or another launcher is at it."""
    row = db.sql.get(MachineRow, machine)
    if row is None:
        return None
    call_by = db.now + timeouts.launch_call
    again = row.state == MachineState.CALLING  # a call was made whose outcome nobody knows
    guarded = update(MachineRow).where(MachineRow.id == machine, _callable(db.now), _is_wanted())
    values = {"state": MachineState.CALLING, "call_by": call_by}
    if not records.touched(db, guarded.values(**values, refusal=UNKNOWN if again else None)):
        return None
    return Launch(machine, row.provider, row.region, row.zone, row.launch_json, call_by, timeouts.launch_call)


def record_unknown(db: Write, launch: Launch) -> None:
    """The call ended without an answer: the machine may exist. It is called for again, with the same bytes."""
    over = update(MachineRow).where(
        MachineRow.id == launch.machine, MachineRow.state == "calling", MachineRow.call_by == launch.call_by
    )
    records.touched(db, over.values(call_by=db.now, refusal=UNKNOWN))


def record_refusal(db: Write, launch: Launch, code: str, message: str) -> None:
    """The provider refused. The row is void at once, unless an earlier call may still have made a machine."""
    row = db.sql.get(MachineRow, launch.machine)
    mine = (MachineRow.id == launch.machine, MachineRow.state == "calling", MachineRow.call_by == launch.call_by)
    if row is None:
        return
    refusal = f"{code}: {message}"
    if row.refusal is not None:
        records.touched(db, update(MachineRow).where(*mine).values(call_by=db.now, refusal=refusal))
        return
    _void(db, row, mine, refusal)


def void(db: Write, machine: UUID, reason: str, listed_at: int, timeouts: Timeouts) -> bool:
    """Give up a machine that was never bought: not called for and unwanted, or refused or unwanted and not in the
    provider's list of `listed_at`, when every call was long over."""
    row = db.sql.get(MachineRow, machine)
    if row is None:
        return False
    unwanted = ~_is_wanted()
    guard = or_(
        (MachineRow.state == "planned") & unwanted,
        (MachineRow.state == "calling")
        & (MachineRow.call_by <= listed_at - timeouts.consistency_window)
        & or_(unwanted, MachineRow.refusal.is_not(None) & (MachineRow.refusal != UNKNOWN)),
    )
    return _void(db, row, (MachineRow.id == machine, guard), row.refusal or reason)


def _callable(now: int) -> Any:
    """Not called yet, or called with an unknown outcome and that call is over."""
    lapsed = (MachineRow.state == "calling") & (MachineRow.call_by <= now)
    return or_(MachineRow.state == "planned", lapsed & or_(MachineRow.refusal.is_(None), MachineRow.refusal == UNKNOWN))


def _is_wanted() -> Any:
    """The machine's attempt is open and its job runs."""
    open_attempt = select(AttemptRow.no).where(
        AttemptRow.job == MachineRow.job, AttemptRow.no == MachineRow.attempt, AttemptRow.state == "open"
    )
    running = select(JobRow.id).where(
        JobRow.id == MachineRow.job, JobRow.state.in_(("launching", "running")), JobRow.desired_state == "run"
    )
    return exists(open_attempt) & exists(running)


def _void(db: Write, row: MachineRow, guard: tuple[Any, ...], refusal: str) -> bool:
    if not records.touched(db, update(MachineRow).where(*guard).values(state=MachineState.VOID, refusal=refusal)):
        return False
    ledger.release_hold(db, row.id, refusal)
    records.machine_event(db, records.job(db, row.job), row.attempt, row.id, "void", reason=refusal)
    db.hint()
    return True

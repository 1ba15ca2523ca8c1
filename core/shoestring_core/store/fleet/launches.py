# SPDX-License-Identifier: Apache-2.0
"""Launch calls to providers: begun, answered, refused, unanswered or given up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, exists, func, or_, select, update

from shoestring_core.decide.refusals import LONGEST_MEMORY, RecentRefusal, RefusalKind
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.launch_request import LaunchRequest
from shoestring_core.states import MachineState
from shoestring_core.store import ledger, transitions
from shoestring_core.store.fleet import rows
from shoestring_core.store.tables import AttemptRow, JobRow, MachineRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording import Reason
from shoestring_core.wording.machines import LaunchNotNeeded, LaunchRefused, LaunchUnanswered

UNKNOWN = "unknown"
"""In place of a refusal: the call ended without an answer, so the machine may exist."""


class PlannedMachine(NamedTuple):
    provider: str
    id: UUID


@dataclass(frozen=True)
class LaunchCall:
    """A launch request, and until when it may be sent."""

    machine: UUID
    provider: str
    request: LaunchRequest
    call_deadline: int
    """Fences the answer: only the row's latest call may record a refusal."""


def load_launchable(db: Read) -> list[PlannedMachine]:
    """The machines to launch now: wanted, and without a call in progress."""
    return [PlannedMachine(*row) for row in db.rows(_LAUNCHABLE, now=db.now)]


def load_refusals(db: Read) -> tuple[RecentRefusal, ...]:
    """What providers refused lately, each offer and kind once, from rows: a restarted worker knows it too."""
    return tuple(
        RecentRefusal(provider, region, zone, type_, market, RefusalKind(str(kind)), at or 0)
        for provider, region, zone, type_, market, kind, at in sorted(db.rows(_REFUSED, since=db.now - LONGEST_MEMORY))
    )


_PRODUCT = (MachineRow.provider, MachineRow.region, MachineRow.zone, MachineRow.type, MachineRow.market)
_REFUSED = (
    select(*_PRODUCT, MachineRow.refusal, func.max(MachineRow.refused_at))
    .where(MachineRow.refused_at > bindparam("since"))
    .group_by(*_PRODUCT, MachineRow.refusal)
)


def load_provider(db: Read, machine: UUID) -> str | None:
    """The provider of a machine; None if there is no such machine."""
    return db.sql.scalar(select(MachineRow.provider).where(MachineRow.id == machine))


def begin_launch(db: Write, machine: UUID, timeouts: Timeouts) -> LaunchCall | None:
    """Record that a launch call is about to be made. None: it isn't wanted, or another worker is making it."""
    row = db.sql.get(MachineRow, machine)
    if row is None:
        return None
    call_deadline = db.now + timeouts.launch_call
    again = row.state == MachineState.LAUNCHING  # the outcome of an earlier call is unknown
    called = transitions.move_machine(machine, MachineState.LAUNCHING).where(_may_be_called(db.now), _is_wanted())
    if not rows.try_update(db, called.values(call_deadline=call_deadline, refusal=UNKNOWN if again else None)):
        return None
    return LaunchCall(machine, row.provider, LaunchRequest.from_json(row.launch_request), call_deadline)


def record_no_answer(db: Write, launch: LaunchCall, problem: str | None = None) -> None:
    """The call ended without an answer: the machine may exist. The call is repeated with the same bytes.

    problem  that somebody has to solve before calls are answered, as a sentence: the job is told, once a machine
    """
    row = db.sql.get(MachineRow, launch.machine)
    if row is None:
        return
    over = update(MachineRow).where(
        MachineRow.id == launch.machine,
        MachineRow.state == "launching",
        MachineRow.call_deadline == launch.call_deadline,
    )
    if problem is None:
        rows.try_update(db, over.values(call_deadline=db.now, refusal=UNKNOWN))
        return
    told = row.refusal_text is not None
    if rows.try_update(db, over.values(call_deadline=db.now, refusal=UNKNOWN, refusal_text=problem)) and not told:
        reason = LaunchUnanswered(problem)
        rows.record_machine_event(
            db, rows.load_job(db, row.job), row.attempt, row.id, MachineState.LAUNCHING, reason=reason
        )


def record_refusal(db: Write, launch: LaunchCall, kind: RefusalKind, message: str) -> None:
    """The provider refused. The launch is given up at once, unless an earlier call may still have made a machine."""
    row = db.sql.get(MachineRow, launch.machine)
    mine = (
        MachineRow.id == launch.machine,
        MachineRow.state == "launching",
        MachineRow.call_deadline == launch.call_deadline,
    )
    if row is None:
        return
    refused = {"refusal": kind, "refusal_text": message, "refused_at": db.now}
    if row.refusal is not None:
        rows.try_update(db, update(MachineRow).where(*mine).values(call_deadline=db.now, **refused))
        return
    _abandon(db, row, mine, LaunchRefused(kind, message), **refused)


def abandon_launch(db: Write, machine: UUID, listed_at: int, timeouts: Timeouts) -> bool:
    """Give a launch up that made no machine: unwanted before its first call; or refused or unwanted, and missing in the
    provider's list of `listed_at`, which is later than every call."""
    row = db.sql.get(MachineRow, machine)
    if row is None:
        return False
    unwanted = ~_is_wanted()
    guard = or_(
        (MachineRow.state == "planned") & unwanted,
        (MachineRow.state == "launching")
        & (MachineRow.call_deadline <= listed_at - timeouts.consistency_window)
        & or_(unwanted, MachineRow.refusal != UNKNOWN),  # NULL, not refused, is not unequal either
    )
    refused = row.refused_at is not None
    reason = LaunchRefused(row.refusal or "", row.refusal_text or "") if refused else LaunchNotNeeded()
    return _abandon(db, row, (guard,), reason)


def _may_be_called(now: Any) -> Any:
    """Not called yet, or called with an unknown outcome and that call is over."""
    lapsed = (MachineRow.state == "launching") & (MachineRow.call_deadline <= now)
    return or_(MachineRow.state == "planned", lapsed & or_(MachineRow.refusal.is_(None), MachineRow.refusal == UNKNOWN))


def _is_wanted() -> Any:
    """The machine's attempt is open and its job runs."""
    open_attempt = select(AttemptRow.number).where(
        AttemptRow.job == MachineRow.job, AttemptRow.number == MachineRow.attempt, AttemptRow.state == "open"
    )
    running = select(JobRow.id).where(
        JobRow.id == MachineRow.job, JobRow.state.in_(("launching", "running")), JobRow.desired_state == "run"
    )
    return exists(open_attempt) & exists(running)


def _abandon(db: Write, row: MachineRow, guard: tuple[Any, ...], reason: Reason, **refused: Any) -> bool:
    abandoned = transitions.move_machine(row.id, MachineState.NEVER_LAUNCHED).where(*guard)
    if not rows.try_update(db, abandoned.values(**refused)):
        return False
    ledger.release_hold(db, row.id, reason)
    rows.record_machine_event(
        db, rows.load_job(db, row.job), row.attempt, row.id, MachineState.NEVER_LAUNCHED, reason=reason
    )
    db.request_tick()
    return True


_LAUNCHABLE = (
    select(MachineRow.provider, MachineRow.id)
    .where(_may_be_called(bindparam("now")), _is_wanted())
    .order_by(MachineRow.id)
)

# SPDX-License-Identifier: Apache-2.0
"""The queue as the scheduler sees it: whether it has changed, what a schedule is made from, and why jobs wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.orm import InstrumentedAttribute

from shoestring_core.decide import failures
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.schedule import AccountBalance, QueuedJob, QueueSnapshot, Wait
from shoestring_core.decide.sizing import Choice
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.errors import InvalidSpec
from shoestring_core.spec import JobSpec
from shoestring_core.states import AttemptState
from shoestring_core.store import ledger
from shoestring_core.store.db import Read, Write
from shoestring_core.store.fleet import rows
from shoestring_core.store.fleet.launches import load_refusals
from shoestring_core.store.tables import AccountRow, AttemptRow, JobRow, MachineRow, SchedulerRow, TeamRow

CAPACITY_DELAY = 5 * S
"""Capacity that was missing a moment ago is still missing; half a gang is paid for while we retry."""

MAX_PARAMETERS = 10_000
"""Values in one statement: SQLite takes 32,766, PostgreSQL 65,535."""

_IN_QUEUE = (JobRow.state == "queued", JobRow.desired_state == "run")


class QueueMark(NamedTuple):
    """Equal marks: nothing was written in between that a schedule depends on.

    jobs      how many are queued
    epoch     raised by each start and each change of waits
    changes   the teams' events, without those that no schedule depends on
    attempts  those not closed yet: one is closed without an event, and opened only with a new epoch
    """

    jobs: int
    epoch: int
    changes: int
    attempts: int


@dataclass(frozen=True)
class LoadedQueue:
    """`waits`: the reason and its detail that each job has now."""

    snapshot: QueueSnapshot
    mark: QueueMark
    waits: dict[UUID, tuple[str | None, dict[str, Any] | None]]

    def changed(self, waits: Iterable[Wait]) -> list[Wait]:
        """Those that differ from what their jobs have."""
        return [wait for wait in waits if self.waits[wait.job][1] != wait.detail.as_json()]


def load_mark(db: Read) -> QueueMark:
    """One cheap statement, however long the queue is."""
    jobs = select(func.count()).select_from(JobRow).where(JobRow.state == "queued")
    epoch, changes = select(SchedulerRow.epoch), select(func.sum(TeamRow.changes))
    attempts = select(func.count()).select_from(AttemptRow).where(AttemptRow.state.in_(rows.UNCLOSED))
    counts = db.sql.execute(select(*(query.scalar_subquery() for query in (jobs, epoch, changes, attempts)))).one()
    return QueueMark(*(int(count or 0) for count in counts))


def load_queue(db: Read, timeouts: Timeouts, known: dict[UUID, QueuedJob]) -> LoadedQueue:
    """The queue in order, the accounts that pay, the machines that are alive.

    known  what never changes of a job, by its id, so that its spec is read once; kept by the caller, updated here
    """
    mark = load_mark(db)
    columns = (JobRow.id, JobRow.attempt, JobRow.wait_reason, JobRow.wait_detail)
    queued = db.sql.execute(select(*columns).where(*_IN_QUEUE).order_by(JobRow.queued_at, JobRow.id)).all()
    if not queued:
        known.clear()
        return LoadedQueue(QueueSnapshot(mark.epoch, (), {}, {}), mark, {})
    accounts = list(db.sql.scalars(select(AccountRow).where(AccountRow.kind.in_(("org", "team", "member")))))
    unreadable = _update_known(db, known, [job.id for job in queued], {row.id: row for row in accounts})
    tried = _load_tried(db, {job.id: known[job.id] for job in queued if job.attempt > 0 and job.id in known}, timeouts)
    queue = tuple(tried.get(job.id) or known[job.id] for job in queued if job.id in known)
    titles = ledger.titles(db, accounts)
    balances = {row.id: _balance(row, titles[row.id]) for row in accounts}
    leaf = (AccountRow.id, AccountRow.limit_micro, AccountRow.posted, AccountRow.held, AccountRow.overdraft)
    for row in _select_in(db, leaf, AccountRow.id, [job.account_path[0] for job in queue]):
        balances[row.id] = _balance(row, "this job")
    waits = {job.id: (job.wait_reason, job.wait_detail) for job in queued}
    return LoadedQueue(
        QueueSnapshot(mark.epoch, queue, balances, rows.count_alive(db), unreadable, load_refusals(db)), mark, waits
    )


def apply_waits(
    db: Write, waits: Sequence[Wait], before: Mapping[UUID, tuple[str | None, dict[str, Any] | None]], epoch: int
) -> bool:  # fmt: skip
    """Record why jobs wait; a reason that differs from the one before is an event. False: another plan came first."""
    if not advance_epoch(db, epoch):
        return False
    jobs = JobRow.metadata.tables["jobs"]
    still_queued = update(jobs).where(jobs.c.id == bindparam("job"), jobs.c.state == "queued")
    values: dict[str, Any] = {
        "wait_reason": bindparam("reason"),
        "wait_detail": bindparam("detail", type_=jobs.c.wait_detail.type),
    }
    in_order = sorted(waits, key=lambda wait: wait.job)
    parameters = [{"job": wait.job, "reason": wait.reason, "detail": wait.detail.as_json()} for wait in in_order]
    db.sql.connection().execute(still_queued.values(values), parameters)
    changed = {wait.job: wait for wait in in_order if wait.reason != before[wait.job][0]}
    for job in _select_in(db, (JobRow.id, JobRow.team_id, JobRow.wait_reason), JobRow.id, list(changed)):
        wait = changed[job.id]
        if job.wait_reason == wait.reason:  # else it has left the queue
            data = {"from": before[job.id][0], "to": wait.reason}
            db.event(team=job.team_id, kind="wait", actor="scheduler", reason=wait.detail, job=job.id, data=data)
    return True


def advance_epoch(db: Write, epoch: int) -> bool:
    """Begin to apply what was planned at `epoch`. False: another plan came first."""
    return rows.try_update(db, update(SchedulerRow).where(SchedulerRow.epoch == epoch).values(epoch=epoch + 1))


def chosen_type(sizing: Mapping[str, Any] | None) -> str | None:
    """The type of machine that was chosen for a job; None: any will do."""
    return Choice.from_json(sizing["choice"]).type if sizing else None


def _update_known(
    db: Read, known: dict[UUID, QueuedJob], queued: list[UUID], accounts: dict[UUID, AccountRow]
) -> dict[UUID, str]:  # fmt: skip
    """Forget the jobs that left the queue; load what never changes of those that are new in it. Returns the jobs whose
    stored spec or sizing can't be read, and why."""
    for job in known.keys() - set(queued):
        del known[job]
    new = [job for job in queued if job not in known]
    owned = _select_in(db, (AccountRow.owner, AccountRow.id, AccountRow.parent), AccountRow.owner, map(str, new))
    paths = {UUID(leaf.owner): (leaf.id, *rows.ancestor_ids(accounts[leaf.parent], accounts)) for leaf in owned}
    unreadable: dict[UUID, str] = {}
    for job in _select_in(db, (JobRow.id, JobRow.spec, JobRow.sizing), JobRow.id, new):
        try:
            known[job.id] = _first_attempt(job, paths[job.id])
        except (InvalidSpec, ValueError, KeyError) as failure:
            unreadable[job.id] = f"{type(failure).__name__}: {failure}"
    return unreadable


def _first_attempt(job: Any, account_path: tuple[UUID, ...]) -> QueuedJob:
    requirements = Requirements.of(JobSpec.from_stored(job.spec).resources, chosen_type(job.sizing))
    return QueuedJob(job=job.id, requirements=requirements, account_path=account_path, attempt=1)


def _load_tried(db: Read, jobs: dict[UUID, QueuedJob], timeouts: Timeouts) -> dict[UUID, QueuedJob]:
    """The jobs that have had attempts, as these left them."""
    tried = (AttemptRow.job, AttemptRow.number, AttemptRow.state, AttemptRow.reason)
    columns = (*tried, AttemptRow.trained, AttemptRow.closed_at)
    attempts = rows.group_by_job(_select_in(db, columns, AttemptRow.job, list(jobs)))
    rented = (MachineRow.job, MachineRow.attempt, MachineRow.state, MachineRow.launched_at)
    machines = rows.group_by_job(_select_in(db, rented, MachineRow.job, list(jobs)))
    return {
        job: _after_attempts(jobs[job], sorted(own, key=lambda row: row.number), machines[job], timeouts)
        for job, own in attempts.items()
    }


def _after_attempts(
    job: QueuedJob, attempts: list[AttemptRow], machines: list[MachineRow], timeouts: Timeouts
) -> QueuedJob:
    last = attempts[-1]
    reopened = last.number not in {row.attempt for row in machines if row.launched_at is not None}
    return replace(
        job,
        attempt=last.number if reopened else last.number + 1,
        reopened=reopened,
        terminating_machines=sum(row.state in rows.ALIVE for row in machines),
        closing=last.state != AttemptState.CLOSED,
        not_before=_not_before(attempts, timeouts),
    )


def _not_before(attempts: list[AttemptRow], timeouts: Timeouts) -> int:
    """When the next attempt may open: after a delay that grows with the attempts in a row that trained nothing."""
    failed: list[AttemptRow] = []
    for attempt in reversed(attempts):
        if attempt.trained or attempt.reason not in ("machine_lost", "not_ready", "capacity", "quota"):
            break
        failed.append(attempt)
    if not failed or failed[0].closed_at is None:
        return 0
    first = CAPACITY_DELAY if failed[0].reason in ("capacity", "quota") else S // 2
    return failed[0].closed_at + failures.backoff(len(failed), timeouts, first)


def _balance(row: Any, name: str) -> AccountBalance:
    return AccountBalance(row.id, name, row.limit_micro, row.posted, row.held, row.overdraft)


def _select_in(
    db: Read, columns: Sequence[Any], key: InstrumentedAttribute[Any], values: Iterable[Any]
) -> Iterator[Any]:
    """Rows of these columns whose key is among the values, in as few statements as the databases allow."""
    left = list(values)
    while left:
        some, left = left[:MAX_PARAMETERS], left[MAX_PARAMETERS:]
        yield from db.sql.execute(select(*columns).where(key.in_(some)))

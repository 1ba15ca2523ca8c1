# SPDX-License-Identifier: Apache-2.0
"""The queue as the scheduler sees it: whether it has changed, what a schedule is made from, and why jobs wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from sqlalchemy import bindparam, exists, func, select, tuple_, update
from sqlalchemy.orm import InstrumentedAttribute

from shoestring_core.decide import retries
from shoestring_core.decide.deadlines import DeadlinePlan, DeadlineTurn
from shoestring_core.decide.queue import AccountBalance, QueuedJob, QueueSnapshot, RunningJob
from shoestring_core.decide.quotas import Product
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.sizing import SizingRecord
from shoestring_core.decide.start import Wait
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.errors import InvalidSpec
from shoestring_core.events import WaitChange
from shoestring_core.spec import JobSpec
from shoestring_core.states import AttemptState, JobState
from shoestring_core.store import deadlines, ledger
from shoestring_core.store.fleet import rows, running_jobs
from shoestring_core.store.fleet.launches import load_refusals
from shoestring_core.store.tables import AccountRow, AttemptRow, DeadlineRow, JobRow, MachineRow, SchedulerRow, TeamRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording.waits import InQueue

PAGE = 100
"""Jobs that are read first, as many of each member. Each further read doubles how many of a member."""

MAX_PARAMETERS = 10_000
"""Values in one statement: SQLite takes 32,766, PostgreSQL 65,535."""

_MEMBER = (JobRow.team_id, JobRow.user_id)
_IN_QUEUE = (JobRow.state == "queued", JobRow.desired_state == "run")


class QueueMark(NamedTuple):
    """Equal marks: nothing was written in between that a schedule depends on.

    queued        whether any job is
    plan_version  raised by each start and each change of waits
    changes       the teams' events, without those that no schedule depends on
    attempts      those not closed yet: one is closed without an event, and opened only with a new plan version
    deadlines     counts the decisions about jobs with a deadline
    """

    queued: bool
    plan_version: int
    changes: int
    attempts: int
    deadlines: int


StoredWait = tuple[str | None, dict[str, Any] | None]
"""A job's wait_reason and wait_detail. Both are None if no schedule looked at the job: its wait is `InQueue`."""


Member: TypeAlias = tuple[UUID, UUID]
"""Ids of a team and a user."""


@dataclass(frozen=True)
class LoadedQueue:
    """The first jobs of each member, as far as they were read.

    waits  what is stored with the queued jobs that have a wait, whether they were read or not
    depth  how many jobs of a member were read at most
    read   how many were, by member
    """

    snapshot: QueueSnapshot
    mark: QueueMark
    waits: dict[UUID, StoredWait]
    depth: int
    read: Counter[Member]

    def changed(self, waits: Iterable[Wait]) -> list[Wait]:
        """Those that differ from what their jobs have; and the waits of jobs that were not read, if one is stored."""
        read = {job.job for job in self.snapshot.queue}
        passed = [Wait(job, InQueue()) for job in self.waits if job not in read]
        return [wait for wait in waits if self.waits.get(wait.job) != _stored(wait)] + passed


def load_mark(db: Read) -> QueueMark:
    """One cheap statement, however long the queue is."""
    ((queued, *numbers),) = db.rows(_MARK)
    return QueueMark(bool(queued), *(int(number or 0) for number in numbers))


def load_queue(
    db: Read,
    timeouts: Timeouts,
    known_jobs: dict[UUID, QueuedJob],
    so_far: LoadedQueue | None = None,
    short_accounts: Collection[UUID] = (),
) -> LoadedQueue:
    """The first queued jobs of each member, the accounts that pay, the machines that are alive.

    known_jobs      what never changes of a job, by its id, so that its spec is read once; kept by the caller
    so_far          what was read of the queue in the same session; more is added to it
    short_accounts  jobs paid from these can't start, and are left out of what is added
    """
    mark = load_mark(db)
    accounts = {
        row.id: row for row in db.sql.scalars(select(AccountRow).where(AccountRow.kind.in_(("org", "team", "member"))))
    }
    lengths = _load_lengths(db)
    before, read = (so_far.snapshot.queue, so_far.read) if so_far else ((), Counter())
    depth = 2 * so_far.depth if so_far else max(1, PAGE // max(1, len(lengths)))
    turns = deadlines.load_turns(db)
    page = _load_page(db, so_far.depth if so_far else 0, depth, _members_paid_from(short_accounts, accounts))
    read = read + Counter((job.team_id, job.user_id) for job in page)
    known = {job.job for job in before}
    page = [job for job in [*page, *_load_urgent(db, turns, page)] if job.id not in known]
    unreadable = _update_known(db, known_jobs, [job.id for job in page], accounts)
    readable = [job for job in page if job.id in known_jobs]
    tried = _load_tried(db, {job.id: known_jobs[job.id] for job in readable if job.attempt > 0}, timeouts)
    added = [replace(tried.get(job.id) or known_jobs[job.id], queued_at=job.queued_at) for job in readable]
    added = [deadlines.with_turn(job, *turns[job.job]) if job.job in turns else job for job in added]
    queue = tuple(sorted((*before, *added), key=lambda job: (job.queued_at, job.job)))
    paths = {_member_of(row): rows.ancestor_ids(row, accounts) for row in accounts.values() if row.kind == "member"}
    running = _load_running(db, accounts.values(), queue)
    products = rows.count_alive(db)
    snapshot = QueueSnapshot(
        mark.plan_version,
        queue,
        _load_balances(db, accounts, queue, running),
        _count_by_provider(products),
        frozenset(paths[member] for member, length in lengths.items() if read[member] < length),
        (so_far.snapshot.unreadable if so_far else {}) | unreadable,
        load_refusals(db),
        products,
        tuple(running),
    )
    return LoadedQueue(snapshot, mark, _load_waits(db), depth, read)


def apply_waits(db: Write, waits: Sequence[Wait], before: Mapping[UUID, StoredWait], plan_version: int) -> bool:
    """Record why jobs wait; a reason that differs from the one before is an event. False: another plan came first."""
    if not advance_plan_version(db, plan_version):
        return False
    jobs = JobRow.metadata.tables["jobs"]
    still_queued = update(jobs).where(jobs.c.id == bindparam("job"), jobs.c.state == "queued")
    values: dict[str, Any] = {
        "wait_reason": bindparam("reason"),
        "wait_detail": bindparam("detail", type_=jobs.c.wait_detail.type),
    }
    in_order = sorted(waits, key=lambda wait: wait.job)
    parameters = [dict(zip(("reason", "detail"), _stored(wait), strict=True), job=wait.job) for wait in in_order]
    db.connection.execute(still_queued.values(values), parameters)
    reasons = {job: reason for job, (reason, _) in before.items()}
    changed = {wait.job: wait for wait in in_order if wait.reason != reasons.get(wait.job)}
    for job in _select_in(db, (JobRow.id, JobRow.team_id, JobRow.state), JobRow.id, list(changed)):
        if job.state == JobState.QUEUED:  # else it has left the queue
            wait = changed[job.id]
            change = WaitChange(from_reason=reasons.get(job.id), to=wait.reason)
            db.event(change, team=job.team_id, actor="scheduler", reason=wait.detail, job=job.id)
    return True


def advance_plan_version(db: Write, version: int) -> bool:
    """Begin to apply a plan that was made at this version. False: another plan came first."""
    still = update(SchedulerRow).where(SchedulerRow.plan_version == version)
    return rows.try_update(db, still.values(plan_version=version + 1))


def chosen_type(sizing: Mapping[str, Any] | None) -> str | None:
    """The type of machine that was chosen for a job; None: any will do."""
    return SizingRecord.from_json(sizing).choice.type if sizing else None


def _load_lengths(db: Read) -> dict[Member, int]:
    """How many jobs each member has in the queue."""
    lengths = select(JobRow.team_id, JobRow.user_id, func.count()).where(*_IN_QUEUE)
    return {(team, user): length for team, user, length in db.sql.execute(lengths.group_by(*_MEMBER))}


def _load_page(db: Read, after: int, through: int, without: Collection[Member]) -> Sequence[Any]:
    """The jobs at these places of each member's queue, without those of some members."""
    place = func.row_number().over(partition_by=_MEMBER, order_by=(JobRow.queued_at, JobRow.id)).label("place")
    queued = select(JobRow.id, place).where(*_IN_QUEUE)
    if without:
        queued = queued.where(tuple_(*_MEMBER).not_in(without))
    places = queued.subquery()
    page = select(JobRow.id, *_MEMBER, JobRow.queued_at, JobRow.attempt).join(places, places.c.id == JobRow.id)
    return db.sql.execute(page.where(places.c.place > after, places.c.place <= through)).all()


def _load_urgent(db: Read, turns: Mapping[UUID, tuple[DeadlinePlan, DeadlineTurn]], page: Iterable[Any]) -> list[Any]:
    """The jobs that start before all others, wherever they are in the queue, as far as they are not on the page."""
    on_page = {job.id for job in page}
    urgent = [job for job, (_, turn) in turns.items() if turn.market == "on_demand" and job not in on_page]
    return list(_select_in(db, (JobRow.id, *_MEMBER, JobRow.queued_at, JobRow.attempt), JobRow.id, urgent, *_IN_QUEUE))


def _load_running(db: Read, accounts: Iterable[AccountRow], queue: Iterable[QueuedJob]) -> list[RunningJob]:
    """As `QueueSnapshot.running`."""
    if any(row.guaranteed_rate for row in accounts) or any(job.time_limit is not None for job in queue):
        return running_jobs.load_running_jobs(db)
    return []


def _load_balances(
    db: Read, accounts: Mapping[UUID, AccountRow], queue: Iterable[QueuedJob], running: Iterable[RunningJob]
) -> dict[UUID, AccountBalance]:
    """Of the accounts that jobs share, and of the queued jobs' own."""
    shared = list(accounts.values())
    titles, half_life = ledger.titles(db, shared), ledger.load_half_life(db)
    capped = any(row.max_jobs is not None or row.max_gpus is not None for row in shared)
    in_use = running_jobs.load_in_use(db) if capped else {}
    balances = {
        row.id: _balance(
            row, titles[row.id], recent=ledger.recent_spending(db, row, half_life), weight=row.weight,
            guaranteed_rate=row.guaranteed_rate, max_jobs=row.max_jobs, max_gpus=row.max_gpus,
            **asdict(in_use.get(row.owner, running_jobs.InUse())),
        )
        for row in shared
    }  # fmt: skip
    leaf = (AccountRow.id, AccountRow.limit_micro, AccountRow.posted, AccountRow.held, AccountRow.overdraft)
    for row in _select_in(db, leaf, AccountRow.id, [job.account_path[0] for job in queue]):
        balances[row.id] = _balance(row, "this job")
    for job in running:
        balances[job.team] = balances[job.team].holding(0, job.rate)
    return balances


def _count_by_provider(products: Mapping[Product, int]) -> dict[str, int]:
    machines: Counter[str] = Counter()
    for product, count in products.items():
        machines[product[0]] += count
    return dict(machines)


def _load_waits(db: Read) -> dict[UUID, StoredWait]:
    stored = select(JobRow.id, JobRow.wait_reason, JobRow.wait_detail).where(JobRow.wait_reason.is_not(None))
    return {job: (reason, detail) for job, reason, detail in db.sql.execute(stored.where(*_IN_QUEUE))}


def _stored(wait: Wait) -> StoredWait:
    return (None, None) if isinstance(wait.detail, InQueue) else (str(wait.reason), wait.detail.as_json())


def _members_paid_from(ids: Collection[UUID], accounts: dict[UUID, AccountRow]) -> list[Member]:
    """The members whose jobs draw on one of these accounts."""
    short = set(ids)
    members = [row for row in accounts.values() if row.kind == "member"]
    return [_member_of(row) for row in members if not short.isdisjoint(rows.ancestor_ids(row, accounts))]


def _member_of(account: AccountRow) -> Member:
    team, _, user = account.owner.partition("/")
    return UUID(team), UUID(user)


def _update_known(
    db: Read, known: dict[UUID, QueuedJob], queued: list[UUID], accounts: dict[UUID, AccountRow]
) -> dict[UUID, str]:  # fmt: skip
    """Load what never changes of the jobs that are new. Returns those whose stored spec or sizing can't be read, and
    why."""
    new = [job for job in queued if job not in known]
    leaf = (AccountRow.owner, AccountRow.id, AccountRow.parent)
    owned = _select_in(db, leaf, AccountRow.owner, map(str, new), AccountRow.kind == "job")
    paths = {UUID(leaf.owner): (leaf.id, *rows.ancestor_ids(accounts[leaf.parent], accounts)) for leaf in owned}
    unreadable: dict[UUID, str] = {}
    for job in _select_in(db, (JobRow.id, JobRow.spec, JobRow.sizing), JobRow.id, new):
        try:
            known[job.id] = _first_attempt(job, paths[job.id])
        except (InvalidSpec, ValueError, KeyError) as failure:
            unreadable[job.id] = f"{type(failure).__name__}: {failure}"
    return unreadable


def _first_attempt(job: Any, account_path: tuple[UUID, ...]) -> QueuedJob:
    spec = JobSpec.from_stored(job.spec)
    requirements = Requirements.of(spec.resources, chosen_type(job.sizing), spec.reserved_time, spec.limits.rate)
    limit = None if spec.limits.time is None else round(spec.limits.time * 1e6)
    return QueuedJob(job=job.id, requirements=requirements, account_path=account_path, attempt=1, time_limit=limit)


def _load_tried(db: Read, jobs: dict[UUID, QueuedJob], timeouts: Timeouts) -> dict[UUID, QueuedJob]:
    """The jobs that have had attempts, as these left them."""
    tried = (AttemptRow.job, AttemptRow.number, AttemptRow.state, AttemptRow.reason)
    columns = (*tried, AttemptRow.trained, AttemptRow.closed_at)
    attempts = rows.group_by_job(_select_in(db, columns, AttemptRow.job, list(jobs)))
    rented = (MachineRow.job, MachineRow.attempt, MachineRow.state, MachineRow.left_until, MachineRow.launched_at)
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
        terminating_machines=sum(map(rows.is_at_work, machines)),
        closing=last.state != AttemptState.CLOSED,
        not_before=_not_before(job.job, attempts, timeouts),
        refused=last.reason in retries.RULES and retries.RULES[last.reason].refused,
    )


def _not_before(job: UUID, attempts: list[AttemptRow], timeouts: Timeouts) -> int:
    """When the next attempt may open: after a delay that grows with the attempts in a row that trained nothing."""
    failed: list[AttemptRow] = []
    for attempt in reversed(attempts):
        if attempt.trained or not retries.delays(attempt.reason):
            break
        failed.append(attempt)
    if not failed or failed[0].closed_at is None:
        return 0
    return failed[0].closed_at + retries.retry_delay(job, failed[0].reason or "", len(failed), timeouts)


def _balance(row: Any, name: str, **of_queue: Any) -> AccountBalance:
    return AccountBalance(row.id, name, row.limit_micro, row.posted, row.held, row.overdraft, **of_queue)


def _select_in(
    db: Read, columns: Sequence[Any], key: InstrumentedAttribute[Any], values: Iterable[Any], *where: Any
) -> Iterator[Any]:
    """Rows of these columns whose key is among the values, in as few statements as the databases allow."""
    left = list(values)
    while left:
        some, left = left[:MAX_PARAMETERS], left[MAX_PARAMETERS:]
        yield from db.sql.execute(select(*columns).where(*where, key.in_(some)))


_MARK = select(
    exists().where(JobRow.state == "queued"),
    select(SchedulerRow.plan_version).scalar_subquery(),
    select(func.sum(TeamRow.schedule_changes)).scalar_subquery(),
    select(func.count()).select_from(AttemptRow).where(AttemptRow.state.in_(rows.UNCLOSED)).scalar_subquery(),
    select(func.sum(DeadlineRow.changes)).where(DeadlineRow.next_at.is_not(None)).scalar_subquery(),
)

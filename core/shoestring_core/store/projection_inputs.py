# SPDX-License-Identifier: Apache-2.0
"""What a projection of the schedule is made from: the queue as the scheduler reads it, and the jobs that run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select

from shoestring_core import money
from shoestring_core.decide.billing import bill
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.progress import remaining_s
from shoestring_core.decide.projection import SETTLING, CurrentRun, Expectation
from shoestring_core.decide.queue import QueueSnapshot
from shoestring_core.decide.quotes import QuotedOffer, quoted_on
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.states import GenerationState, JobState
from shoestring_core.store import ledger
from shoestring_core.store.fleet import rows
from shoestring_core.store.fleet.billing import evidence
from shoestring_core.store.fleet.offers import load_known
from shoestring_core.store.fleet.queue import load_queue
from shoestring_core.store.kept_quotes import read_quote
from shoestring_core.store.queries import JobRows, load_job_rows
from shoestring_core.store.tables import JobRow
from shoestring_core.store.transactions import Read

MAX_QUEUED = 200
"""Queued jobs that are read; those further back have no position."""

MAX_RUNNING = 500

TOO_LONG = 10 * 365 * 86_400 * S
"""What is expected to take longer has no expected end: calendars have one."""


@dataclass(frozen=True)
class ProjectionInputs:
    """
    waiting  how many jobs are in the queue, of all teams
    quotes   of queued jobs, by job, as far as any run says what they take
    jobs     the queued jobs' rows
    """

    snapshot: QueueSnapshot
    runs: tuple[CurrentRun, ...]
    offers: tuple[Offer, ...]
    timeouts: dict[str, Timeouts]
    now: int
    waiting: int
    quotes: Mapping[UUID, QuotedOffer]
    jobs: Mapping[UUID, JobRow]

    def expect(self, job: UUID, offer: Offer, nodes: int) -> Expectation | None:
        """See `projection.Expect`."""
        quoted = self.quotes.get(job)
        found = None if quoted is None else quoted_on(quoted, offer, nodes)
        if found is None or found[0] * 1e6 > TOO_LONG:
            return None
        return Expectation(round(found[0] * 1e6), found[1])


def load_projection_inputs(db: Read, timeouts: Timeouts) -> ProjectionInputs:
    """`timeouts`: the service's, as for `load_queue`."""
    known = db.once(load_known)
    loaded = load_queue(db, timeouts, {})
    while loaded.snapshot.unread and len(loaded.snapshot.queue) < MAX_QUEUED:
        loaded = load_queue(db, timeouts, {}, loaded)
    queued = [job.job for job in loaded.snapshot.queue]
    jobs = {job.id: job for job in db.sql.scalars(select(JobRow).where(JobRow.id.in_(queued)))}
    quotes = {job.id: quote for job in jobs.values() if (quote := read_quote(job))}
    waiting = select(func.count()).select_from(JobRow).where(JobRow.state == "queued", JobRow.desired_state == "run")
    return ProjectionInputs(
        snapshot=loaded.snapshot,
        runs=_load_runs(db),
        offers=known.offers,
        timeouts=known.timeouts,
        now=db.now,
        waiting=db.sql.scalar(waiting) or 0,
        quotes=quotes,
        jobs=jobs,
    )


def _load_runs(db: Read) -> tuple[CurrentRun, ...]:
    running = select(JobRow).where(JobRow.state.in_((JobState.LAUNCHING, JobState.RUNNING, JobState.STOPPING)))
    loaded = load_job_rows(db, db.sql.scalars(running.order_by(JobRow.id).limit(MAX_RUNNING)).all())
    accounts = {row.id: row for row in ledger.accounts_upward(db, "job", [str(one.job.id) for one in loaded])}
    found = []
    for one in loaded:
        if one.account and (run := _run(one, rows.ancestor_ids(one.account, accounts), db.now)):
            found.append(run)
    return tuple(found)


def _run(loaded: JobRows, account_path: tuple[UUID, ...], now: int) -> CurrentRun | None:
    """None: none of its machines is at work."""
    alive = [machine for machine in loaded.machines if rows.is_at_work(machine)]
    if not alive or loaded.account is None:
        return None
    ends_at = _ends_at(loaded, now)
    accrued = sum(
        max(0, sum(line.amount for line in bill(evidence(machine), now)) - loaded.posted.get(machine.id, 0))
        for machine in alive
    )
    to_come = 0 if ends_at is None else sum(money.cost(machine.price, ends_at - now) for machine in alive)
    first = alive[0]
    return CurrentRun(
        job=loaded.job.id,
        account_path=account_path,
        product=(first.provider, first.region, first.type, first.market),
        nodes=len(alive),
        began_at=now,
        ends_at=ends_at,
        held=loaded.account.held,
        cost=accrued + to_come,
        gpus=sum(rows.offered_hardware(machine).gpus for machine in alive),
    )


def _ends_at(loaded: JobRows, now: int) -> int | None:
    """By its progress, or by what was quoted for it; None: unknown."""
    job, current = loaded.job, loaded.generations[-1] if loaded.generations else None
    if job.state == JobState.STOPPING:
        return now + SETTLING
    if current and current.state == GenerationState.FORMED:
        step = max(current.start_step, current.last_step or 0)
        left = remaining_s(job.steps_total, step, current.start_step, current.first_step_at, now)
        if left is not None:
            return now + round(left * 1e6) + SETTLING if left * 1e6 < TOO_LONG else None
    quoted, launched = read_quote(job), min((one.launched_at or now for one in loaded.machines), default=now)
    if quoted is None or quoted.time_s is None or quoted.time_s.expected * 1e6 > TOO_LONG:
        return None
    return max(now + SETTLING, launched + round(quoted.time_s.expected * 1e6))

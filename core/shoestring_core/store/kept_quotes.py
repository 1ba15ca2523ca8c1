# SPDX-License-Identifier: Apache-2.0
"""Quotes that were kept with jobs at their submission, and what became of these jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select

from shoestring_core.decide.calibration import RunOutcome
from shoestring_core.decide.quotes import QuotedOffer
from shoestring_core.states import EndReason, JobState
from shoestring_core.store.tables import AccountRow, EventRow, JobRow, MachineRow
from shoestring_core.store.transactions import Read

MAX_COMPARED_JOBS = 500
"""The team's newest ended jobs that trained."""


def load_quoted_jobs(db: Read, team: UUID) -> list[tuple[str, QuotedOffer, RunOutcome]]:
    """Recipe, quote and outcome of the team's newest ended jobs, of those that had a quote."""
    ended = select(JobRow).where(
        JobRow.team_id == team, JobRow.first_step_at.is_not(None), JobRow.state == JobState.ENDED
    )
    rows = db.sql.scalars(ended.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(MAX_COMPARED_JOBS)).all()
    kept = [(row, quote) for row in rows if (quote := read_quote(row))]
    outcomes = load_outcomes(db, [row for row, _ in kept])
    return [(str(row.spec.get("recipe")), quote, outcomes[row.id]) for row, quote in kept]


def read_quote(job: JobRow) -> QuotedOffer | None:
    """The quote that was kept with a job; None: there is none, or it is damaged."""
    if not job.quote:
        return None
    try:
        quoted = QuotedOffer.from_json(job.quote)
    except ValueError:
        return None
    return quoted if quoted.time_s and quoted.cost else None


def load_outcomes(db: Read, jobs: Sequence[JobRow]) -> dict[UUID, RunOutcome]:
    """What became of each job."""
    ids = [job.id for job in jobs]
    machines: dict[UUID, list[MachineRow]] = defaultdict(list)
    for machine in db.sql.scalars(
        select(MachineRow).where(MachineRow.job.in_(ids), MachineRow.launched_at.is_not(None))
    ):
        machines[machine.job].append(machine)
    accounts = select(AccountRow.owner, AccountRow.posted).where(
        AccountRow.kind == "job", AccountRow.owner.in_([str(one) for one in ids])
    )
    posted = {UUID(owner): amount for owner, amount in db.sql.execute(accounts)}
    pauses = select(EventRow.job).where(
        EventRow.job.in_(ids), EventRow.kind == "job", EventRow.data["to"].as_string() == JobState.PAUSED
    )
    paused = set(db.sql.scalars(pauses))
    return {
        job.id: RunOutcome(
            end_reason=EndReason(job.end_reason) if job.end_reason else None,
            settled=job.settled_at is not None,
            launched_at=min((one.launched_at for one in machines[job.id] if one.launched_at), default=None),
            ended_at=job.ended_at,
            cost=posted.get(job.id, 0),
            machines=frozenset((one.type, one.market, one.slot) for one in machines[job.id]),
            paused=job.id in paused,
        )
        for job in jobs
    }

# SPDX-License-Identifier: Apache-2.0
"""What a job has done so far: attempts, events, metrics, cost."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from shoestring_core import rest
from shoestring_core.store import events as feed
from shoestring_core.store import jobs, kept_quotes, ledger, queries
from shoestring_core.store.metrics import load_curves, load_energy_curves

from shoestring_api.dependencies import Caller, Cursor, ReadDep
from shoestring_api.serializers.attempts import serialize_attempts, serialize_generations
from shoestring_api.serializers.cost_reports import serialize_cost_report
from shoestring_api.serializers.costs import serialize_budgets
from shoestring_api.serializers.events import serialize_curves, serialize_events
from shoestring_api.serializers.quotes import serialize_kept_quote

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("/{job_id}/attempts")
def list_attempts(job_id: UUID, db: ReadDep, caller: Caller) -> rest.AttemptList:
    """List the job's attempts with their machines and generations."""
    row = queries.load_job_rows(db, [jobs.get(db, caller.team, job_id)])[0]
    return serialize_attempts(row, queries.load_attempts(db, job_id), db.now)


@router.get("/{job_id}/events")
def list_events(
    job_id: UUID, db: ReadDep, caller: Caller, cursor: Cursor = None, limit: Annotated[int, Query(ge=1, le=1000)] = 200
) -> rest.EventPage:
    """List the job's events, oldest first. `next_cursor` is None on the last page."""
    job = jobs.get(db, caller.team, job_id)
    after = feed.from_cursor(caller.team, cursor) if cursor else 0
    events = queries.load_job_events(db, job, after, limit + 1)
    last = events[limit - 1] if len(events) > limit else None
    return rest.EventPage(
        events=serialize_events(events[:limit]),
        next_cursor=feed.to_cursor(caller.team, last.seq) if last else None,
    )


@router.get("/{job_id}/metrics")
def get_metrics(
    job_id: UUID,
    db: ReadDep,
    caller: Caller,
    keys: Annotated[str | None, Query(max_length=4000, description="Comma-separated names; all if absent")] = None,
    attempts: Literal["merged", "all"] = "merged",
    first: Annotated[int, Query(ge=0, le=2**62)] = 0,
    last: Annotated[int | None, Query(ge=0, le=2**62)] = None,
) -> rest.Metrics:
    """Return the curves. `merged`: each step once, from the generation that owns it; `all`: rolled-back steps too."""
    job = jobs.get(db, caller.team, job_id)
    names = None if keys is None else [name for name in keys.split(",") if name]
    curves = [] if names == [] else load_curves(db, job.id, names, merged=attempts == "merged", first=first, last=last)
    return rest.Metrics(
        curves=serialize_curves(curves),
        generations=serialize_generations(queries.load_job_rows(db, [job])[0].generations),
        cursor=feed.to_cursor(caller.team, feed.latest_seq(db, caller.team)),
    )


@router.get("/{job_id}/cost")
def get_cost(job_id: UUID, db: ReadDep, caller: Caller) -> rest.CostReport:
    """Return what the job costs, its machines and its ledger entries, and what was quoted when it was submitted."""
    row = queries.load_job_rows(db, [jobs.get(db, caller.team, job_id)])[0]
    transfers = ledger.transfers_of(db, row.account.id) if row.account else []
    accounts = queries.load_accounts(
        db, (side for transfer in transfers for side in (transfer.debit_account, transfer.credit_account))
    )
    funding_accounts = ledger.ancestors(db, row.account.id) if row.account else []
    names = ledger.titles(db, list(accounts.values()))
    budgets = serialize_budgets(db, funding_accounts)
    quoted = kept_quotes.read_quote(row.job)
    kept = serialize_kept_quote(quoted, kept_quotes.load_outcomes(db, [row.job])[job_id]) if quoted else None
    return serialize_cost_report(row, transfers, names, budgets, load_energy_curves(db, job_id), kept, db.now)

# SPDX-License-Identifier: Apache-2.0
"""The queue: whose turn it is, why jobs wait, and when they are expected to start."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import TypeAdapter, ValidationError
from shoestring_core import rest
from shoestring_core.decide.projection import project
from shoestring_core.decide.queue import QueuedJob
from shoestring_core.decide.what_ifs import AccountChange, Changes, JobChange, apply_changes
from shoestring_core.errors import InvalidRequest, NotFound
from shoestring_core.spec.field_types import Gpu
from shoestring_core.spec.gpus import GpuChoice, parse_gpus
from shoestring_core.store import ledger
from shoestring_core.store.tables import AccountRow

from shoestring_api.dependencies import Caller, ReadDep, StateDep
from shoestring_api.json_body import ExactJsonRoute
from shoestring_api.routes.budgets import parse_amount
from shoestring_api.serializers.queue import serialize_queue, serialize_what_if

router = APIRouter(prefix="/v1", tags=["queue"], route_class=ExactJsonRoute)


@router.get("/queue")
def get_queue(state: StateDep, db: ReadDep, caller: Caller) -> rest.Queue:
    """Return the team's queued jobs in the order of service, with their places in the queue of all teams.

    Starts are expected as the scheduler would decide if jobs take as long as their quotes say, and nobody submits,
    stops or grants anything.
    """
    queue = state.projection.get(db, state.timeouts)
    if caller.team not in queue.by_team:
        queue.by_team[caller.team] = serialize_queue(db, queue.inputs, queue.projection, caller.team)
    return queue.by_team[caller.team]


@router.post("/what-ifs")
def create_what_if(body: rest.WhatIfRequest, state: StateDep, db: ReadDep, caller: Caller) -> rest.WhatIf:
    """Return the schedule to come and what budgets spend, as things are and with the changes. Nothing is changed."""
    queue = state.projection.get(db, state.timeouts)
    inputs, before = queue.inputs, queue.projection
    accounts = {one.budget: ledger.visible_account(db, caller.team, one.budget) for one in body.budgets}
    own = {job.id for job in inputs.jobs.values() if job.team_id == caller.team}
    if missing := [one.job for one in body.jobs if one.job not in own]:
        raise NotFound(f"Job {missing[0]} is not in your team's queue.", hint="`shoestring queue` lists its jobs.")
    queued = {one.job: one for one in inputs.snapshot.queue}
    changes = Changes(
        {one.budget: _account_change(one, accounts[one.budget]) for one in body.budgets},
        {one.job: _job_change(one, queued[one.job]) for one in body.jobs},
    )
    snapshot, runs, paused = apply_changes(inputs.snapshot, inputs.runs, changes, inputs.now)
    after = project(snapshot, runs, inputs.offers, inputs.now, inputs.timeouts, inputs.expect)
    shown = {account.id: account for account in (ledger.team_account(db, caller.team), *accounts.values())}
    return serialize_what_if(db, inputs, before, after, paused, shown, changes, caller.team)


def _job_change(change: rest.JobWhatIf, queued: QueuedJob) -> JobChange:
    deadline = None
    if change.deadline is not None:
        if queued.deadline is None:
            raise InvalidRequest(
                f"Job {change.job} has no deadline that could be another.", hint="Leave deadline out for this job."
            )
        deadline = round(change.deadline.timestamp() * 1e6)
    return JobChange(change.first, change.any_machine, change.stop, _gpus(change.gpu), deadline)


def _gpus(text: str | None) -> tuple[GpuChoice, ...] | None:
    if text is None:
        return None
    try:
        return parse_gpus(_GPU.validate_python(text))
    except ValidationError as invalid:
        raise InvalidRequest(f"gpu {invalid.errors()[0]['msg']}.") from None


_GPU: TypeAdapter[str] = TypeAdapter(Gpu)


def _account_change(change: rest.BudgetWhatIf, account: AccountRow) -> AccountChange:
    limit = account.limit_micro
    if change.limit is not None:
        limit = None if change.limit == "none" else account.period_base + parse_amount(change.limit)
    return AccountChange(limit, account.weight if change.weight is None else change.weight)

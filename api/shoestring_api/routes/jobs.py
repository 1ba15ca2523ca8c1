# SPDX-License-Identifier: Apache-2.0
"""Jobs: submit, list, show, stop, retry, resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response
from shoestring_core import rest
from shoestring_core.decide.sizing import SizingRecord
from shoestring_core.errors import BudgetExceeded, InvalidSpec, Problem
from shoestring_core.spec import JobSpec
from shoestring_core.states import JobState
from shoestring_core.store import audit, checkpoints, job_search, jobs, queries
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import planning
from shoestring_core.store.identity import Principal
from shoestring_core.store.tables import JobRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording.jobs import BudgetStillExhausted

from shoestring_api.app_state import AppState
from shoestring_api.dependencies import Caller, Cursor, IdempotencyKey, ReadDep, StateDep
from shoestring_api.idempotency import run_once
from shoestring_api.job_specs import parse_spec
from shoestring_api.json_body import ExactJsonRoute
from shoestring_api.routes.quotes import apply_sizing, plan_submission, quote_submission
from shoestring_api.serializers.jobs import serialize_job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=ExactJsonRoute)


@router.post(
    "",
    status_code=201,
    response_model=rest.Job,
    responses={200: {"model": rest.Job, "description": "A dry run: validated, nothing stored"}},
)
def submit_job(body: rest.SubmitJobRequest, state: StateDep, caller: Caller, key: IdempotencyKey = None) -> Response:
    """Queue a training job for the caller's team."""
    spec = parse_spec(body.spec, caller, state)
    init = _find_initial_checkpoint(spec.init_job_id, state, caller) if spec.init_job_id else None

    def work(db: Write) -> rest.Job:
        sized, sizing = apply_sizing(db, caller, spec)
        hold, quote = planning.min_hold(db, sized), quote_submission(db, caller, sized, sizing)
        plan = plan_submission(db, caller, sized, sizing)
        new = jobs.submit(db, caller, sized, min_hold=hold, sizing=sizing, quote=quote, deadline=plan, init=init)
        return serialize_job(queries.rows_of_new_job(db, new, caller), db.now)

    if body.dry_run:
        return Response(_dry_run(state.store, work).model_dump_json(), media_type="application/json")
    request = json.dumps(body.model_dump(mode="json"), sort_keys=True)
    only_inserts = spec.limits.deadline is None  # else money is committed
    return run_once(state, caller, key, f"POST /v1/jobs {request}", 201, work, only_inserts=only_inserts)


@router.post("/{job_id}:stop", status_code=202, response_model=rest.Job)
def stop_job(
    job_id: UUID, state: StateDep, caller: Caller, body: rest.StopJobRequest | None = None, key: IdempotencyKey = None
) -> Response:
    """Stop or pause a job: it saves a checkpoint, then its machines are terminated."""
    mode = body.mode if body else "stop"

    def work(db: Write) -> rest.Job:
        job = jobs.get(db, caller.team, job_id)
        audit.record(db, caller, "stop_job", audit.subject("job", job.name, job.id), mode=mode)
        return _serialize(db, jobs.stop(db, job.id, caller.actor, mode))

    return run_once(state, caller, key, f"POST /v1/jobs/{job_id}:stop {mode}", 202, work)


@router.post("/{job_id}:retry", status_code=201, response_model=rest.Job)
def retry_job(job_id: UUID, state: StateDep, caller: Caller, key: IdempotencyKey = None) -> Response:
    """Submit a finished, failed or stopped job again, from its stored spec and last checkpoint."""

    def work(db: Write) -> rest.Job:
        old = jobs.get(db, caller.team, job_id)
        spec = JobSpec.from_stored(old.spec)
        sizing = SizingRecord.from_json(old.sizing) if old.sizing else None
        plan = plan_submission(db, caller, spec, sizing)
        new = jobs.retry(db, caller, old.id, min_hold=planning.min_hold(db, spec), deadline=plan)
        return serialize_job(queries.rows_of_new_job(db, new, caller), db.now)

    return run_once(state, caller, key, f"POST /v1/jobs/{job_id}:retry", 201, work)


@router.post("/{job_id}:resume", status_code=202, response_model=rest.Job)
def resume_job(job_id: UUID, state: StateDep, caller: Caller, key: IdempotencyKey = None) -> Response:
    """Queue a paused job again. One that its budget paused is refused as long as that can't pay for a start."""

    def work(db: Write) -> rest.Job:
        job = jobs.get(db, caller.team, job_id)
        [rows] = queries.load_job_rows(db, [job])
        if job.state == JobState.PAUSED and rows.budget_wait:
            raise BudgetExceeded(BudgetStillExhausted(rows.budget_wait))
        audit.record(db, caller, "resume_job", audit.subject("job", job.name, job.id))
        return _serialize(db, jobs.resume(db, job.id, caller.actor))

    return run_once(state, caller, key, f"POST /v1/jobs/{job_id}:resume", 202, work)


@router.get("")
def list_jobs(
    db: ReadDep,
    caller: Caller,
    filter: Annotated[str, Query(max_length=job_search.MAX_CHARACTERS)] = "",
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> rest.JobPage:
    """List the team's jobs, newest first."""
    page = job_search.search(db, caller.team, filter, cursor, limit)
    resources = [serialize_job(row, db.now) for row in queries.load_job_rows(db, page.jobs)]
    return rest.JobPage(jobs=resources, next_cursor=page.next_cursor)


@router.get(
    "/{job_id}",
    response_model=rest.Job,
    responses={304: {"description": "Not modified since the ETag in If-None-Match"}},
)
def get_job(
    job_id: UUID, db: ReadDep, caller: Caller, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """Return a job."""
    job = _serialize(db, jobs.get(db, caller.team, job_id))
    etag = _etag(job)
    if if_none_match is not None and etag in if_none_match:
        return Response(status_code=304, headers={"ETag": etag})
    return Response(job.model_dump_json(), media_type="application/json", headers={"ETag": etag})


class _DryRun(Exception):
    """Not an error: carries the result out of a transaction that must not commit."""

    def __init__(self, job: rest.Job) -> None:
        self.job = job


def _dry_run(store: Store, work: Callable[[Write], rest.Job]) -> rest.Job:
    """Return what `work` returns and roll its transaction back."""

    def work_then_abort(db: Write) -> None:
        raise _DryRun(work(db))

    try:
        store.write(work_then_abort)
    except _DryRun as dry_run:
        return dry_run.job
    raise AssertionError("the dry run did not abort its transaction")


def _find_initial_checkpoint(job_id: UUID, state: AppState, caller: Principal) -> UUID:
    """Return the checkpoint that `init: job/ID` refers to. Raises InvalidSpec if its objects no longer exist."""
    with state.store.read() as db:
        checkpoint = checkpoints.load_for_init(db, caller.team, job_id)
    if state.objects.head(f"{checkpoint.object_key}/data") is None:
        message = (
            f"The newest checkpoint of job {job_id} (step {checkpoint.step}) no longer exists in the object store."
        )
        raise InvalidSpec([Problem("/init", f"{message} Use another job.", "no-checkpoint")])
    return checkpoint.id


def _serialize(db: Read, job: JobRow) -> rest.Job:
    return serialize_job(queries.load_job_rows(db, [job])[0], db.now)


def _etag(job: rest.Job) -> str:
    """Return an ETag of the job without the fields that change with the clock alone."""
    clock_fields = {"cost": {"running", "on_demand"}, "progress": {"eta_s"}}
    return f'W/"{hashlib.sha256(job.model_dump_json(exclude=clock_fields).encode()).hexdigest()[:32]}"'

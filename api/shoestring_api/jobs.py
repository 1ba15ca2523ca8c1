# SPDX-License-Identifier: Apache-2.0
"""Jobs over REST."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse
from shoestring_core import rest
from shoestring_core.decide import funding
from shoestring_core.errors import InvalidSpec, NotFound, Problem
from shoestring_core.spec import JobSpec
from shoestring_core.store import checkpoints, job_search, jobs, ledger, rows
from shoestring_core.store import events as feed
from shoestring_core.store.db import Read, Store, Write
from shoestring_core.store.identity import Principal
from shoestring_core.store.logs import LogPosition, load_lines, load_tail
from shoestring_core.store.metrics import load_curves, load_energy_curves
from shoestring_core.store.tables import JobRow, MachineRow

from shoestring_api import plans, problems, specs, views
from shoestring_api.bodies import ExactRoute
from shoestring_api.service import Caller, Here, IdempotencyKey, Reading, Service, once

MAX_MANIFEST_BYTES = 16_000_000
LINES_AT_ONCE = 2_000

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=ExactRoute)

Cursor = Annotated[str | None, Query(max_length=20_000)]


# --- submitting, stopping, going on -----------------------------------------------------------------------


@router.post(
    "",
    status_code=201,
    response_model=rest.Job,
    responses={200: {"model": rest.Job, "description": "A dry run: checked as a whole, and nothing stored"}},
)
def submit(body: rest.SubmitJob, service: Here, caller: Caller, key: IdempotencyKey = None) -> Response:
    """Queue a training job for the caller's team."""
    spec = specs.read(body.spec, caller, service)
    init = _weights(spec.init_job_id, service, caller) if spec.init_job_id else None

    def work(db: Write) -> rest.Job:
        sized, sizing = plans.size(db, caller, spec, service.timeouts)
        hold = _smallest_hold(sized, service)
        job = jobs.submit(db, caller.team, caller.user, sized, smallest_hold=hold, sizing=sizing, init=init)
        return _view(db, job)

    if body.dry_run:
        return Response(_tried(service.store, work).model_dump_json(), media_type="application/json")
    asked = json.dumps(body.model_dump(mode="json"), sort_keys=True)
    return once(service, caller, key, f"POST /v1/jobs {asked}", 201, work)


@router.post("/{job_id}:stop", status_code=202, response_model=rest.Job)
def stop(
    job_id: UUID, service: Here, caller: Caller, body: rest.StopJob | None = None, key: IdempotencyKey = None
) -> Response:
    """Stop or pause a job: it saves a checkpoint and its machines end."""
    mode = body.mode if body else "stop"

    def work(db: Write) -> rest.Job:
        job = jobs.get(db, caller.team, job_id)
        return _view(db, jobs.stop(db, job.id, caller.actor, mode))

    return once(service, caller, key, f"POST /v1/jobs/{job_id}:stop {mode}", 202, work)


@router.post("/{job_id}:retry", status_code=201, response_model=rest.Job)
def retry(job_id: UUID, service: Here, caller: Caller, key: IdempotencyKey = None) -> Response:
    """Submit an ended job again, from its stored spec and last checkpoint."""

    def work(db: Write) -> rest.Job:
        old = jobs.get(db, caller.team, job_id)
        hold = _smallest_hold(JobSpec.from_stored(old.spec), service)
        return _view(db, jobs.retry(db, caller.team, old.id, caller.user, smallest_hold=hold))

    return once(service, caller, key, f"POST /v1/jobs/{job_id}:retry", 201, work)


@router.post("/{job_id}:resume", status_code=202, response_model=rest.Job)
def resume(job_id: UUID, service: Here, caller: Caller, key: IdempotencyKey = None) -> Response:
    """Queue a paused job again."""

    def work(db: Write) -> rest.Job:
        job = jobs.get(db, caller.team, job_id)
        return _view(db, jobs.resume(db, job.id, caller.actor))

    return once(service, caller, key, f"POST /v1/jobs/{job_id}:resume", 202, work)


class _DryRun(Exception):
    """No error: carries the answer out of a transaction that must not commit."""

    def __init__(self, job: rest.Job) -> None:
        self.job = job


def _tried(store: Store, work: Callable[[Write], rest.Job]) -> rest.Job:
    """What `work` would answer, with nothing stored."""

    def rolled_back(db: Write) -> None:
        raise _DryRun(work(db))

    try:
        store.write(rolled_back)
    except _DryRun as dry:
        return dry.job
    raise AssertionError("the transaction was left by an exception")


def _weights(job_id: UUID, service: Service, caller: Principal) -> UUID:
    """The checkpoint that `init: job/ID` means from now on. It must still be there."""
    with service.store.read() as db:
        found = checkpoints.to_start_with(db, caller.team, job_id)
    if service.objects.head(f"{found.object_key}/data") is None:
        message = f"The newest checkpoint of job {job_id}, of step {found.step}, is not in the object store any more."
        raise InvalidSpec([Problem("/init", f"{message} Name another job.", "no-checkpoint")])
    return found.id


def _smallest_hold(spec: JobSpec, service: Service) -> int:
    """What the first machines take at least: the price that a machine can't exceed, for the first funding."""
    return spec.resources.nodes * funding.first_hold(service.settings.local_price_on_demand, service.timeouts)


# --- reading ----------------------------------------------------------------------------------------------


@router.get("")
def index(
    db: Reading,
    caller: Caller,
    filter: Annotated[str, Query(max_length=500)] = "",
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> rest.JobPage:
    """The team's jobs, newest first."""
    page = job_search.search(db, caller.team, filter, cursor, limit)
    shown = [views.job(row, db.now) for row in rows.of_jobs(db, page.jobs)]
    return rest.JobPage(jobs=shown, next_cursor=page.next_cursor)


@router.get(
    "/{job_id}",
    response_model=rest.Job,
    responses={304: {"description": "Not changed since the ETag in If-None-Match"}},
)
def show(job_id: UUID, db: Reading, caller: Caller, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """One job."""
    view = _view(db, jobs.get(db, caller.team, job_id))
    etag = _etag(view)
    if if_none_match is not None and etag in if_none_match:
        return Response(status_code=304, headers={"ETag": etag})
    return Response(view.model_dump_json(), media_type="application/json", headers={"ETag": etag})


@router.get("/{job_id}/attempts")
def attempts(job_id: UUID, db: Reading, caller: Caller) -> rest.AttemptList:
    """What was rented for the job, and what trained together."""
    row = _rows(db, jobs.get(db, caller.team, job_id))
    return views.attempts(row, rows.attempts(db, job_id), db.now)


@router.get("/{job_id}/events")
def events(
    job_id: UUID, db: Reading, caller: Caller, cursor: Cursor = None, limit: Annotated[int, Query(ge=1, le=1000)] = 200
) -> rest.EventPage:
    """What happened to the job, oldest first. `next_cursor` is None at the end."""
    job = jobs.get(db, caller.team, job_id)
    after = feed.position(caller.team, cursor) if cursor else 0
    found = rows.job_events(db, job, after, limit + 1)
    more = found[limit - 1] if len(found) > limit else None
    return rest.EventPage(
        events=[views.event(row) for row in found[:limit]],
        next_cursor=feed.cursor(caller.team, more.seq) if more else None,
    )


@router.get("/{job_id}/metrics")
def metrics(
    job_id: UUID,
    db: Reading,
    caller: Caller,
    keys: Annotated[str | None, Query(max_length=4000, description="Comma-separated names; all if absent")] = None,
    attempts: Literal["merged", "all"] = "merged",
    first: Annotated[int, Query(ge=0, le=2**62)] = 0,
    last: Annotated[int | None, Query(ge=0, le=2**62)] = None,
) -> rest.Metrics:
    """Curves. `merged`: each step once, as the generation that owns it reported it; `all`: lost work too."""
    job = jobs.get(db, caller.team, job_id)
    names = None if keys is None else [name for name in keys.split(",") if name]
    found = [] if names == [] else load_curves(db, job.id, names, merged=attempts == "merged", first=first, last=last)
    return rest.Metrics(
        curves=views.curves(found),
        generations=views.generations(_rows(db, job).generations),
        cursor=feed.cursor(caller.team, feed.head(db, caller.team)),
    )


@router.get("/{job_id}/cost")
def cost(job_id: UUID, db: Reading, caller: Caller) -> rest.CostReport:
    """What the job costs, machine by machine, and its lines in the ledger."""
    row = _rows(db, jobs.get(db, caller.team, job_id))
    lines = ledger.transfers_of(db, row.account.id) if row.account else []
    sides = rows.accounts(db, (side for line in lines for side in (line.debit, line.credit)))
    names = {account.id: ledger.title(db, account) for account in sides.values()}
    above = ledger.ancestors(db, row.account.id) if row.account else []
    budgets = [views.budget(account, ledger.title(db, account)) for account in above]
    return views.cost_report(row, lines, names, budgets, load_energy_curves(db, job_id), db.now)


# --- logs -------------------------------------------------------------------------------------------------


@router.get(
    "/{job_id}/logs",
    response_model=rest.Logs,
    responses={200: {"content": {"text/plain": {}, "application/x-ndjson": {}}}},
)
def logs(
    job_id: UUID,
    service: Here,
    caller: Caller,
    rank: Annotated[int | None, Query(ge=-1, le=100_000)] = None,
    machine: UUID | None = None,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    tail: Annotated[int | None, Query(ge=0, le=10_000)] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "application/json",
) -> Response:
    """Log lines in the order they came: a page as JSON, or all as `text/plain` or `application/x-ndjson` by Accept.

    Rank −1 is the agent's own log and the launcher's.
    """
    with service.store.read() as db:
        job = jobs.get(db, caller.team, job_id)
    reading = _LogReading(service.store, job, rank, machine)
    position = LogPosition.from_cursor(cursor) if cursor else None
    if "text/plain" in accept:
        texts = (line.text + "\n" for page in reading.pages(position, tail) for line in page)
        return StreamingResponse(texts, media_type="text/plain; charset=utf-8")
    if "ndjson" in accept:
        records = (line.model_dump_json() + "\n" for page in reading.pages(position, tail) for line in page)
        return StreamingResponse(records, media_type="application/x-ndjson")
    found, position = reading.last(tail) if tail is not None else reading.page(position, limit)
    page = rest.Logs(lines=found, next_cursor=position.to_cursor(), truncated=job.log_truncated)
    return Response(page.model_dump_json(), media_type="application/json")


class _LogReading:
    """A job's log, page by page, each in a short transaction of its own."""

    def __init__(self, store: Store, job: JobRow, rank: int | None, machine: UUID | None) -> None:
        self._store, self._job, self._rank, self._machine = store, job.id, rank, machine

    def page(self, position: LogPosition | None, limit: int) -> tuple[list[rest.LogLine], LogPosition]:
        with self._store.read() as db:
            found, position = load_lines(
                db, self._job, rank=self._rank, machine=self._machine, after=position, limit=limit
            )
            return views.lines(found, self._machines(db)), position

    def last(self, count: int) -> tuple[list[rest.LogLine], LogPosition]:
        with self._store.read() as db:
            found, position = load_tail(db, self._job, count, rank=self._rank, machine=self._machine)
            return views.lines(found, self._machines(db)), position

    def pages(self, position: LogPosition | None, tail: int | None) -> Iterator[list[rest.LogLine]]:
        if tail is not None:
            yield self.last(tail)[0]
            return
        while True:
            page, position = self.page(position, LINES_AT_ONCE)
            yield page
            if len(page) < LINES_AT_ONCE:
                return

    def _machines(self, db: Read) -> dict[UUID, MachineRow]:
        return {machine.id: machine for machine in rows.machines(db, self._job)}


# --- artifacts --------------------------------------------------------------------------------------------


@router.get("/{job_id}/artifacts")
def artifacts(job_id: UUID, service: Here, db: Reading, caller: Caller) -> rest.ArtifactList:
    """The files of the newest final checkpoint: the model and how to load it. None before the job has finished."""
    job = jobs.get(db, caller.team, job_id)
    found = checkpoints.final(db, job.id)
    if found is None:
        return rest.ArtifactList(artifacts=[])
    return views.artifacts(job, found.step, _manifest(service, found.object_key).parts)


@router.get(
    "/{job_id}/artifacts/{name}",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        206: {"description": "The range asked for", "content": {"application/octet-stream": {}}},
    },
)
def artifact(
    job_id: UUID,
    name: str,
    service: Here,
    db: Reading,
    caller: Caller,
    range_: Annotated[str | None, Header(alias="Range", max_length=200)] = None,
) -> Response:
    """One of these files."""
    job = jobs.get(db, caller.team, job_id)
    found = checkpoints.final(db, job.id)
    parts = _manifest(service, found.object_key).parts if found else []
    part = next((part for part in parts if part.name == name), None)
    if found is None or part is None:
        raise NotFound(f"The job has no artifact {name!r}.", hint=f"GET /v1/jobs/{job_id}/artifacts lists them.")
    first, last = problems.byte_range(range_, part.bytes)
    count = last - first + 1
    headers = {
        "Content-Length": str(count),
        "Accept-Ranges": "bytes",
        "ETag": f'"{part.sha256}"',
        "Content-Disposition": f'attachment; filename="{part.name}"',
    }
    whole = count == part.bytes
    if not whole:
        headers["Content-Range"] = f"bytes {first}-{last}/{part.bytes}"
    blocks = service.objects.blocks(f"{found.object_key}/data", part.offset + first, count)
    return StreamingResponse(
        blocks, status_code=200 if whole else 206, headers=headers, media_type="application/octet-stream"
    )


def _manifest(service: Service, key: str) -> checkpoints.Manifest:
    return checkpoints.Manifest.model_validate_json(service.objects.read(f"{key}/manifest.json", MAX_MANIFEST_BYTES))


# --- small things -----------------------------------------------------------------------------------------


def _rows(db: Read, job: JobRow) -> rows.JobRows:
    return rows.of_jobs(db, [job])[0]


def _view(db: Read, job: JobRow) -> rest.Job:
    return views.job(_rows(db, job), db.now)


def _etag(view: rest.Job) -> str:
    """Of what was decided and reported, not of what the clock alone changes."""
    moving = {"cost": {"running", "on_demand"}, "progress": {"eta_s"}}
    return f'W/"{hashlib.sha256(view.model_dump_json(exclude=moving).encode()).hexdigest()[:32]}"'

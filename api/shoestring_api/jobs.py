# SPDX-License-Identifier: Apache-2.0
"""Jobs over REST."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response
from shoestring_core import rest
from shoestring_core.errors import Unavailable

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Cursor = Annotated[str | None, Query(max_length=500)]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]


def _not_yet() -> Unavailable:
    return Unavailable("The store is being built.")


@router.post("", status_code=201, responses={200: {"model": rest.Job, "description": "A dry run: nothing was stored"}})
def submit(body: rest.SubmitJob, key: IdempotencyKey = None) -> rest.Job:
    """Queue a training job for the caller's team."""
    raise _not_yet()


@router.get("")
def index(
    filter: Annotated[str, Query(max_length=500)] = "",  # noqa: A002 - the parameter's name on the wire
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> rest.JobPage:
    """The team's jobs, newest first. `filter`: words such as `state:running recipe:digits/quickstart tag.week:3`."""
    raise _not_yet()


@router.get("/{job_id}", responses={304: {"description": "Not changed since the ETag in If-None-Match"}})
def show(job_id: UUID, if_none_match: Annotated[str | None, Header()] = None) -> rest.Job:
    """One job."""
    raise _not_yet()


@router.post("/{job_id}:stop", status_code=202)
def stop(job_id: UUID, body: rest.StopJob | None = None, key: IdempotencyKey = None) -> rest.Job:
    """Stop a job: it saves a checkpoint and its machines end."""
    raise _not_yet()


@router.post("/{job_id}:retry", status_code=201)
def retry(job_id: UUID, key: IdempotencyKey = None) -> rest.Job:
    """Submit an ended job again, from its stored spec and last checkpoint."""
    raise _not_yet()


@router.post("/{job_id}:resume", status_code=202)
def resume(job_id: UUID, key: IdempotencyKey = None) -> rest.Job:
    """Queue a paused job again."""
    raise _not_yet()


@router.get("/{job_id}/attempts")
def attempts(job_id: UUID) -> rest.AttemptList:
    """What was rented for the job, and what trained together."""
    raise _not_yet()


@router.get("/{job_id}/events")
def events(job_id: UUID, cursor: Cursor = None, limit: Annotated[int, Query(ge=1, le=1000)] = 200) -> rest.EventPage:
    """What happened to the job, oldest first."""
    raise _not_yet()


@router.get("/{job_id}/metrics")
def metrics(
    job_id: UUID,
    name: Annotated[list[str] | None, Query(max_length=200)] = None,
    attempts: Literal["merged", "all"] = "merged",
    first: Annotated[int, Query(ge=0, le=2**62)] = 0,
    last: Annotated[int | None, Query(ge=0, le=2**62)] = None,
) -> rest.Metrics:
    """Curves. `attempts=merged`: each step once, as the generation that owns it reported it; `all`: lost work too."""
    raise _not_yet()


@router.get(
    "/{job_id}/logs",
    responses={200: {"model": rest.Logs, "content": {"text/plain": {}, "application/x-ndjson": {}}}},
)
def logs(
    job_id: UUID,
    rank: Annotated[int | None, Query(ge=-1, le=100_000)] = None,
    machine: UUID | None = None,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    tail: Annotated[int | None, Query(ge=0, le=10_000)] = None,
    accept: Annotated[str, Header()] = "application/json",
) -> Response:
    """Log lines: JSON, `text/plain` or `application/x-ndjson` by Accept. Rank −1 is the agent's own log."""
    raise _not_yet()


@router.get("/{job_id}/cost")
def cost(job_id: UUID) -> rest.CostReport:
    """What the job costs, machine by machine, and its lines in the ledger."""
    raise _not_yet()


@router.get("/{job_id}/artifacts")
def artifacts(job_id: UUID) -> rest.ArtifactList:
    """The files of the newest final checkpoint."""
    raise _not_yet()


@router.get(
    "/{job_id}/artifacts/{name}",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}, 206: {"description": "The range asked for"}},
)
def artifact(job_id: UUID, name: str, range_: Annotated[str | None, Header(alias="Range")] = None) -> Response:
    """One of these files."""
    raise _not_yet()

# SPDX-License-Identifier: Apache-2.0
"""Logs of a job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse
from shoestring_core import rest
from shoestring_core.store import jobs, queries
from shoestring_core.store.db import Store
from shoestring_core.store.logs import LogPosition, load_lines, load_tail
from shoestring_core.store.tables import JobRow, MachineRow
from shoestring_core.store.transactions import Read

from shoestring_api.dependencies import Caller, Cursor, StateDep
from shoestring_api.serializers.events import serialize_log_lines

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

PAGE_LINES = 2_000


@router.get(
    "/{job_id}/logs",
    response_model=rest.Logs,
    responses={200: {"content": {"text/plain": {}, "application/x-ndjson": {}}}},
)
def get_logs(
    job_id: UUID,
    state: StateDep,
    caller: Caller,
    rank: Annotated[int | None, Query(ge=-1, le=100_000)] = None,
    machine: UUID | None = None,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    tail: Annotated[int | None, Query(ge=0, le=10_000)] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "application/json",
) -> Response:
    """Return log lines in order of arrival: a page as JSON; by Accept, all as `text/plain` or `application/x-ndjson`.

    Rank −1 is the log of the agent and of torchrun.
    """
    with state.store.read() as db:
        job = jobs.get(db, caller.team, job_id)
    reader = _LogReader(state.store, job, rank, machine)
    position = LogPosition.from_cursor(cursor) if cursor else None
    if "text/plain" in accept:
        texts = (line.text + "\n" for page in reader.pages(position, tail) for line in page)
        return StreamingResponse(texts, media_type="text/plain; charset=utf-8")
    if "ndjson" in accept:
        records = (line.model_dump_json() + "\n" for page in reader.pages(position, tail) for line in page)
        return StreamingResponse(records, media_type="application/x-ndjson")
    lines, position = reader.last(tail) if tail is not None else reader.page(position, limit)
    page = rest.Logs(lines=lines, next_cursor=position.to_cursor(), truncated=job.log_truncated)
    return Response(page.model_dump_json(), media_type="application/json")


class _LogReader:
    """Reads a job's log in pages, each in a short transaction of its own."""

    def __init__(self, store: Store, job: JobRow, rank: int | None, machine: UUID | None) -> None:
        self._store, self._job, self._rank, self._machine = store, job.id, rank, machine

    def page(self, position: LogPosition | None, limit: int) -> tuple[list[rest.LogLine], LogPosition]:
        with self._store.read() as db:
            lines, position = load_lines(
                db, self._job, rank=self._rank, machine=self._machine, after=position, limit=limit
            )
            return serialize_log_lines(lines, self._machines(db)), position

    def last(self, count: int) -> tuple[list[rest.LogLine], LogPosition]:
        with self._store.read() as db:
            lines, position = load_tail(db, self._job, count, rank=self._rank, machine=self._machine)
            return serialize_log_lines(lines, self._machines(db)), position

    def pages(self, position: LogPosition | None, tail: int | None) -> Iterator[list[rest.LogLine]]:
        if tail is not None:
            yield self.last(tail)[0]
            return
        while True:
            page, position = self.page(position, PAGE_LINES)
            yield page
            if len(page) < PAGE_LINES:
                return

    def _machines(self, db: Read) -> dict[UUID, MachineRow]:
        return {machine.id: machine for machine in queries.load_machines(db, self._job)}

# SPDX-License-Identifier: Apache-2.0
"""Artifacts of a job: the files of its final checkpoint."""

from __future__ import annotations

import re
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, HTTPException
from fastapi.responses import Response, StreamingResponse
from shoestring_core import rest
from shoestring_core.errors import NotFound
from shoestring_core.store import checkpoints, jobs
from shoestring_core.store.tables import JobRow

from shoestring_api.app_state import AppState
from shoestring_api.dependencies import Caller, ReadDep, StateDep

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@router.get("/{job_id}/artifacts")
def list_artifacts(job_id: UUID, state: StateDep, db: ReadDep, caller: Caller) -> rest.ArtifactList:
    """List the files of the final checkpoint: the model and how to load it. Empty until the job has finished."""
    job = jobs.get(db, caller.team, job_id)
    checkpoint = checkpoints.newest_final(db, job.id)
    if checkpoint is None:
        return rest.ArtifactList(artifacts=[])
    return rest.ArtifactList(
        artifacts=[
            _serialize(job, checkpoint.step, part) for part in _read_manifest(state, checkpoint.object_key).parts
        ]
    )


@router.get(
    "/{job_id}/artifacts/{name}",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        206: {"description": "The requested range", "content": {"application/octet-stream": {}}},
    },
)
def download_artifact(
    job_id: UUID,
    name: str,
    state: StateDep,
    db: ReadDep,
    caller: Caller,
    range_: Annotated[str | None, Header(alias="Range", max_length=200)] = None,
) -> Response:
    """Download an artifact."""
    job = jobs.get(db, caller.team, job_id)
    checkpoint = checkpoints.newest_final(db, job.id)
    parts = _read_manifest(state, checkpoint.object_key).parts if checkpoint else []
    part = next((part for part in parts if part.name == name), None)
    if checkpoint is None or part is None:
        raise NotFound(f"The job has no artifact {name!r}.", hint=f"GET /v1/jobs/{job_id}/artifacts lists them.")
    first, last = _parse_byte_range(range_, part.bytes)
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
    blocks = state.objects.blocks(f"{checkpoint.object_key}/data", part.offset + first, count)
    return StreamingResponse(
        blocks, status_code=200 if whole else 206, headers=headers, media_type="application/octet-stream"
    )


def _read_manifest(state: AppState, key: str) -> checkpoints.Manifest:
    return checkpoints.read_manifest(state.objects, key)[0]


def _serialize(job: JobRow, step: int, part: checkpoints.Part) -> rest.Artifact:
    url = f"/v1/jobs/{job.id}/artifacts/{part.name}"
    return rest.Artifact(name=part.name, bytes=part.bytes, sha256=part.sha256, step=step, url=url)


def _parse_byte_range(header: str | None, size: int) -> tuple[int, int]:
    """Return the first and last byte of a Range header (RFC 9110, one range), or the whole file without one.

    Raises HTTPException 416 for a range outside the file.
    """
    if header is None or not (requested := _RANGE.fullmatch(header.strip())) or requested.groups() == ("", ""):
        return 0, size - 1
    first, last = requested.groups()
    begin = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if begin > end or begin >= size:
        raise HTTPException(416, headers={"Content-Range": f"bytes */{size}"})
    return begin, end

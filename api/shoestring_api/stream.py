# SPDX-License-Identifier: Apache-2.0
"""The live stream."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from shoestring_core.errors import Unavailable

router = APIRouter(prefix="/v1", tags=["stream"])


@router.get(
    "/stream",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Events `job` (Job), `points` (PointsMessage), "
                     "`logs` (LogsMessage), `event` (Event), `budget` (Budget), `resync`: read the resources again"}},
)  # fmt: skip
async def stream(
    topics: Annotated[str, Query(max_length=2000, description="Comma-separated: jobs, job:ID, budget")] = "jobs",
    cursor: Annotated[str | None, Query(max_length=500)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """What happens from the cursor on, as server-sent events; without one, from now on."""
    raise Unavailable("The store is being built.")

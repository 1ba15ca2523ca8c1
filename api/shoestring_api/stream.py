# SPDX-License-Identifier: Apache-2.0
"""The live stream: one connection for everything a page shows."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from prometheus_client import Gauge
from shoestring_core.errors import InvalidRequest
from shoestring_core.store import jobs

from shoestring_api.feeds import Position
from shoestring_api.service import Caller, Here, Service

router = APIRouter(prefix="/v1", tags=["stream"])

LASTS_S = 1800.0
"""Then the client comes back, and shows its key again."""
MARK_S = 10.0

STREAMS = Gauge("shoestring_streams", "Live streams that are open")


@dataclass(frozen=True)
class Subscription:
    service: Service
    team: UUID
    topics: frozenset[str]
    jobs: tuple[UUID, ...]
    position: Position | None


def subscription(
    service: Here,
    caller: Caller,
    topics: Annotated[str, Query(max_length=4000, description="Comma-separated: jobs, job:ID, budget")] = "jobs",
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    last_event_id: Annotated[str | None, Header(max_length=200)] = None,
) -> Subscription:
    """Checked before the stream begins. Raises InvalidRequest, NotFound."""
    chosen = {topic.strip() for topic in topics.split(",") if topic.strip()}
    watched = []
    with service.store.read() as db:
        for topic in sorted(chosen - {"jobs", "budget"}):
            watched.append(jobs.get(db, caller.team, _job_id(topic)).id)
    names = (chosen & {"jobs", "budget"}) | {f"job:{job}" for job in watched}
    if not names:
        raise InvalidRequest("No topic was named.", hint="Name one of: jobs, job:ID, budget.")
    text = last_event_id or cursor
    position = Position.parse(caller.team, text) if text else None
    return Subscription(service, caller.team, frozenset(names), tuple(watched), position)


def _job_id(topic: str) -> UUID:
    kind, _, text = topic.partition(":")
    try:
        if kind == "job":
            return UUID(text)
    except ValueError:
        pass
    raise InvalidRequest(f"There is no topic {topic[:60]!r}.", hint="Topics are: jobs, job:ID, budget.")


@router.get(
    "/stream",
    response_class=EventSourceResponse,
    responses={
        200: {
            "content": {"text/event-stream": {}},
            "description": "Events `job` (Job), `points` (PointsMessage), `logs` (LogsMessage), `event` (Event), "
            "`budget` (Budget), and `resync`: the cursor is too old, read everything again",
        }
    },
)
async def stream(chosen: Annotated[Subscription, Depends(subscription)]) -> AsyncIterator[ServerSentEvent]:
    """What happens from the cursor on, as server-sent events; without one, from now on."""
    service, team = chosen.service, chosen.team
    ends_at = time.monotonic() + LASTS_S
    marked_at = 0.0
    with STREAMS.track_inprogress():
        async with service.wake.watch(chosen.jobs), service.feeds.read(team, chosen.position) as reader:
            yield ServerSentEvent(comment="connected", id=reader.position.text(team), retry=1000)
            async for group in reader.groups():
                if group is None:
                    yield ServerSentEvent(raw_data="{}", event="resync", id=reader.position.text(team))
                    continue
                sent = False
                for message in group.past(reader.position):
                    if message.topics & chosen.topics:
                        cursor = message.position.text(team) if message.position else None
                        yield ServerSentEvent(raw_data=message.data, event=message.name, id=cursor)
                        sent = True
                if sent or time.monotonic() - marked_at > MARK_S:  # an id alone moves the cursor and shows nothing
                    yield ServerSentEvent(id=Position(group.through).text(team))
                    marked_at = time.monotonic()
                if time.monotonic() > ends_at:
                    return

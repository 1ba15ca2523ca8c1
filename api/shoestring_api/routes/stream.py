# SPDX-License-Identifier: Apache-2.0
"""The live stream: server-sent events for everything that a page shows, on one connection."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import format_sse_event
from prometheus_client import Gauge
from shoestring_core.errors import InvalidRequest, TooMany, Unauthenticated
from shoestring_core.store import events as feed
from shoestring_core.store import jobs

from shoestring_api.app_state import AppState
from shoestring_api.dependencies import Caller, StateDep, authenticate
from shoestring_api.event_broadcast import StreamPosition
from shoestring_api.stream_authentication import StreamAuthentication

router = APIRouter(prefix="/v1", tags=["stream"])

MAX_DURATION_S = 1800.0
"""Then the client must reconnect, perhaps to another process."""
MAX_STREAMS = 50
"""Streams of one person that a process serves at a time."""
PING_INTERVAL_S = 5.0
"""Without messages a ping with the cursor is sent this often: the cursor stays recent, and a viewer knows that the
service is alive."""
MESSAGE_SCHEMA = {
    "type": "object",
    "properties": {
        "data": {"type": "string"},
        "event": {"type": "string"},
        "id": {"type": "string"},
        "retry": {"type": "integer", "minimum": 0},
    },
}

OPEN_STREAMS = Gauge("shoestring_open_streams", "Open live streams")


@dataclass(frozen=True)
class Subscription:
    state: AppState
    team: UUID
    user: UUID
    authentication: StreamAuthentication
    topics: frozenset[str]
    jobs: tuple[UUID, ...]
    position: StreamPosition


def parse_subscription(
    request: Request,
    state: StateDep,
    caller: Caller,
    topics: Annotated[str, Query(max_length=4000, description="Comma-separated: jobs, job:ID, budget")] = "jobs",
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    last_event_id: Annotated[str | None, Header(max_length=200)] = None,
) -> Subscription:
    """Validate the request before the stream starts. Raises InvalidRequest, NotFound, TooMany.

    A stream without a cursor has its position from here, so that it shows whatever happens once its headers arrived.
    """
    if state.open_streams[caller.user] >= MAX_STREAMS:
        raise TooMany(
            f"You have {MAX_STREAMS} live streams open, the most that one person may have.", hint="Close one."
        )
    chosen = {topic.strip() for topic in topics.split(",") if topic.strip()}
    watched = []
    text = last_event_id or cursor
    with state.store.read() as db:
        for topic in sorted(chosen - {"jobs", "budget"}):
            watched.append(jobs.get(db, caller.team, _parse_job_topic(topic)).id)
        position = StreamPosition.parse(caller.team, text) if text else StreamPosition(feed.latest_seq(db, caller.team))
    names = (chosen & {"jobs", "budget"}) | {f"job:{job}" for job in watched}
    if not names:
        raise InvalidRequest("No topic was given.", hint="Topics: jobs, job:ID, budget.")

    def is_authenticated() -> bool:
        try:
            return authenticate(request, state) == caller
        except Unauthenticated:
            return False

    authentication = state.stream_authentications.open(caller, is_authenticated)
    return Subscription(state, caller.team, caller.user, authentication, frozenset(names), tuple(watched), position)


def _parse_job_topic(topic: str) -> UUID:
    kind, _, text = topic.partition(":")
    try:
        if kind == "job":
            return UUID(text)
    except ValueError:
        pass
    raise InvalidRequest(f"Unknown topic {topic[:60]!r}.", hint="Topics: jobs, job:ID, budget.")


@router.get(
    "/stream",
    response_class=Response,
    responses={
        200: {
            "content": {"text/event-stream": {"itemSchema": MESSAGE_SCHEMA}},
            "description": "Events `job` (Job), `points` (PointsMessage), `logs` (LogsMessage), `event` (Event), "
            "`budget` (Budget), `ping` every 5 s without others, and `resync`: the cursor is too old, read everything "
            "again",
        }
    },
)
async def stream_events(subscription: Annotated[Subscription, Depends(parse_subscription)]) -> StreamingResponse:
    """Stream what happens after the cursor, or from now on without one."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_encoded_events(subscription), media_type="text/event-stream", headers=headers)


async def _encoded_events(subscription: Subscription) -> AsyncIterator[bytes]:
    """The stream's bytes. FastAPI would encode every message for every stream."""
    state, team = subscription.state, subscription.team
    ends_at = time.monotonic() + MAX_DURATION_S
    sent_at = time.monotonic()
    with OPEN_STREAMS.track_inprogress(), _counted(state, subscription.user):
        async with (
            state.notifier.watch(subscription.jobs),
            state.broadcaster.open_reader(team, subscription.position) as reader,
        ):
            yield format_sse_event(comment="connected", id=reader.position.text(team), retry=1000)
            async for group in reader.groups():
                if not await subscription.authentication.is_valid():
                    return
                if group is None:
                    yield format_sse_event(data_str="{}", event="resync", id=reader.position.text(team))
                    continue
                messages = group.encoded_for(subscription.topics, reader.position)
                through = StreamPosition(group.through).text(team)
                if messages:
                    yield messages + format_sse_event(id=through)  # an id without data only moves the cursor
                    sent_at = time.monotonic()
                elif time.monotonic() - sent_at >= PING_INTERVAL_S:
                    yield format_sse_event(data_str="{}", event="ping", id=through)
                    sent_at = time.monotonic()
                if time.monotonic() > ends_at:
                    return


@contextlib.contextmanager
def _counted(state: AppState, user: UUID) -> Iterator[None]:
    state.open_streams[user] += 1
    try:
        yield
    finally:
        state.open_streams[user] -= 1

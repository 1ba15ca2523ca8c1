# SPDX-License-Identifier: Apache-2.0
"""The messages of live streams: each team's events are read once and shared by all its readers.

Facts (`event`, `points`, `logs`) have a position and are sent once. States (`job`, `budget`) are the rows after these
facts, so sending one twice does no harm. A reader is only a position: readers at the head share what was read last, one
further back reads by itself until it has caught up. A message is made and encoded when it is read, so that one more
reader costs only what it takes to send it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Self
from uuid import UUID

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from shoestring_core import rest, wire
from shoestring_core.errors import Unavailable
from shoestring_core.events import BatchStored
from shoestring_core.store import events as feed
from shoestring_core.store import ledger, queries, reports
from shoestring_core.store.cursors import InvalidCursor
from shoestring_core.store.db import Store
from shoestring_core.store.tables import EventRow, MachineRow
from shoestring_core.store.transactions import Read

from shoestring_api.change_notifier import ChangeNotifier
from shoestring_api.serializers.costs import serialize_budgets
from shoestring_api.serializers.events import serialize_curves, serialize_events, serialize_log_lines
from shoestring_api.serializers.jobs import serialize_job

log = logging.getLogger(__name__)

EVENTS_PER_READ = 200
MAX_CACHED_GROUPS = 200
MAX_CACHED_BYTES = 16_000_000
PAUSE_PER_READER_S = 0.004
"""After each group, for each reader; what happens meanwhile is the next group. So however much happens, a team costs
250 sends a second at most; one of few viewers sees each change at once, one of 200 after 0.8 s."""
WHOLE_EVENT = 9
"""`StreamPosition.part` after every message of an event was sent."""

MONEY_EVENT_KINDS = frozenset(
    {"budget", "weight", "guaranteed_rate", "concurrency", "soft_line", "soft_lines", "cost", "job", "machine", "alarm"}
)
"""Events after which budgets may have changed."""


@dataclass(frozen=True, order=True)
class StreamPosition:
    """How far a reader has come: through part `part` of event `seq`."""

    seq: int
    part: int = WHOLE_EVENT

    @classmethod
    def parse(cls, team: UUID, text: str) -> Self:
        cursor, _, part = text.partition(".")
        if part not in ("", "1", "2"):
            raise InvalidCursor
        return cls(feed.from_cursor(team, cursor), int(part or WHOLE_EVENT))

    def text(self, team: UUID) -> str:
        return feed.to_cursor(team, self.seq) + ("" if self.part == WHOLE_EVENT else f".{self.part}")

    @property
    def read_after(self) -> int:
        """The event after which a reader at this position must start reading."""
        return self.seq if self.part == WHOLE_EVENT else self.seq - 1


@dataclass(frozen=True)
class StreamMessage:
    """A server-sent event for the subscribers of its topics. A state has no position of its own."""

    topics: frozenset[str]
    encoded: bytes
    position: StreamPosition | None = None


@dataclass(frozen=True)
class MessageGroup:
    """The messages of the events after `after` through `through`."""

    after: int
    through: int
    messages: tuple[StreamMessage, ...]

    def encoded_for(self, topics: frozenset[str], position: StreamPosition) -> bytes:
        """What a reader at `position` who subscribed to these topics has not seen; may be empty."""
        return b"".join(
            message.encoded
            for message in self.messages
            if not message.topics.isdisjoint(topics) and (message.position is None or message.position > position)
        )

    def size(self) -> int:
        """Bytes of all its messages."""
        return sum(len(message.encoded) for message in self.messages)


class EventBroadcaster:
    """The broadcasts that have readers now, one for each team."""

    def __init__(self, store: Store, notifier: ChangeNotifier) -> None:
        self._store, self._notifier = store, notifier
        self._broadcasts: dict[UUID, _TeamBroadcast] = {}

    @contextlib.asynccontextmanager
    async def open_reader(self, team: UUID, position: StreamPosition) -> AsyncIterator[StreamReader]:
        """Yield a reader that starts at `position`."""
        broadcast = self._broadcasts.get(team)
        if broadcast is None:
            broadcast = self._broadcasts[team] = _TeamBroadcast(self._store, self._notifier, team)
        broadcast.readers += 1
        try:
            await broadcast.ensure_started()
            yield StreamReader(broadcast, position)
        finally:
            broadcast.readers -= 1
            if broadcast.readers == 0:
                self._broadcasts.pop(team, None)
                await broadcast.stop()

    async def close(self) -> None:
        for broadcast in list(self._broadcasts.values()):
            await broadcast.stop()


class StreamReader:
    def __init__(self, broadcast: _TeamBroadcast, position: StreamPosition) -> None:
        self._broadcast = broadcast
        self.position = position

    async def groups(self) -> AsyncIterator[MessageGroup | None]:
        """Yield the next groups until the process shuts down; an empty one when there was none for POLL_S.

        None means that the position is too old, or past the head of the feed (after a database was restored): the
        client must read everything again.
        """
        broadcast = self._broadcast
        while not broadcast.notifier.closing:
            changed = broadcast.changed
            if broadcast.floor <= self.position.read_after <= broadcast.through:
                nothing_new = MessageGroup(broadcast.through, broadcast.through, ())
                for group in broadcast.cached_groups(self.position) or [nothing_new]:
                    yield group
                    self.position = StreamPosition(group.through)
            elif old := await asyncio.to_thread(broadcast.load_old, self.position):
                yield old
                self.position = StreamPosition(old.through)
            else:
                self.position = StreamPosition(broadcast.through)
                yield None
            if self.position.seq >= broadcast.through:
                await changed.wait()


@dataclass
class _TeamBroadcast:
    store: Store
    notifier: ChangeNotifier
    team: UUID
    readers: int = 0
    floor: int = 0
    """Cached groups start after this event."""
    through: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _groups: deque[MessageGroup] = field(default_factory=deque)
    _size: int = 0
    _started: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    async def ensure_started(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._follow())
        await self._started.wait()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def cached_groups(self, position: StreamPosition) -> list[MessageGroup]:
        """Those past the position, looked for from the newest: most readers miss only that one."""
        newer = list(takewhile(lambda group: group.through > position.read_after, reversed(self._groups)))
        return newer[::-1]

    def load_old(self, position: StreamPosition) -> MessageGroup | None:
        """Load the group after a position that is no longer cached; None if its events are deleted."""
        with self.store.read() as db:
            if feed.is_too_old(db, self.team, position.read_after):
                return None
            return load_group(db, self.team, position.read_after)

    async def _follow(self) -> None:
        with self.notifier.subscribe(self.team) as signal:
            while True:
                signal.clear()
                try:
                    if not self._started.is_set():
                        self.floor = self.through = await asyncio.to_thread(self._load_head)
                        self._started.set()
                    group = await asyncio.to_thread(self._load_new)
                except Unavailable as error:
                    log.warning("the events of a team could not be read: %s", error)
                    await asyncio.sleep(1.0)
                    continue
                if group.through > self.through:
                    self._cache(group)
                    await asyncio.sleep(self.readers * PAUSE_PER_READER_S)
                else:
                    self._wake_readers()
                if group.through - group.after < EVENTS_PER_READ:  # else there may be more
                    await signal.wait()

    def _load_head(self) -> int:
        with self.store.read() as db:
            return feed.latest_seq(db, self.team)

    def _load_new(self) -> MessageGroup:
        with self.store.read() as db:
            return load_group(db, self.team, self.through)

    def _cache(self, group: MessageGroup) -> None:
        self._groups.append(group)
        self._size += group.size()
        self.through = group.through
        while len(self._groups) > 1 and (len(self._groups) > MAX_CACHED_GROUPS or self._size > MAX_CACHED_BYTES):
            dropped = self._groups.popleft()
            self._size -= dropped.size()
            self.floor = dropped.through
        self._wake_readers()

    def _wake_readers(self) -> None:
        """Wake the readers; those without a new group keep waiting."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


def load_group(db: Read, team: UUID, after: int) -> MessageGroup:
    """Return the next events past `after` as messages, followed by the state of the rows that they concern."""
    events = feed.load_events(db, team, after, EVENTS_PER_READ)
    if not events:
        return MessageGroup(after, after, ())
    messages = [message for event in events for message in _fact_messages(db, team, event)]
    messages += _job_messages(db, {event.job for event in events if event.job is not None})
    if any(event.kind in MONEY_EVENT_KINDS for event in events):
        messages += _budget_messages(db, team)
    return MessageGroup(after, events[-1].seq, tuple(messages))


def _fact_messages(db: Read, team: UUID, event: EventRow) -> Iterator[StreamMessage]:
    topics = frozenset({f"job:{event.job}"} if event.job else {"budget", "jobs"})
    if event.kind != BatchStored.kind:
        for readable in serialize_events([event]):
            yield _message(topics, "event", readable, team, StreamPosition(event.seq, 1))
        return
    if event.job is None:
        return
    try:
        batch = wire.from_stored(BatchStored, event.data)
    except ValueError as damaged:
        log.error("event %s of team %s can't be read: %r", event.seq, event.team, damaged)
        return
    points, lines = reports.load_batch(db, batch.source, batch.seq)
    if points:
        curves = serialize_curves(points)
        points_message = rest.PointsMessage(job=event.job, generation=event.generation or 0, curves=curves)
        yield _message(topics, "points", points_message, team, StreamPosition(event.seq, 1))
    if lines:
        machine = db.sql.get_one(MachineRow, batch.source)
        logs_message = rest.LogsMessage(job=event.job, lines=serialize_log_lines(lines, {machine.id: machine}))
        yield _message(topics, "logs", logs_message, team, StreamPosition(event.seq, 2))


def _job_messages(db: Read, ids: Iterable[UUID]) -> Iterator[StreamMessage]:
    for row in queries.load_job_rows(db, queries.load_jobs(db, ids)):
        yield _message(frozenset({"jobs", f"job:{row.job.id}"}), "job", serialize_job(row, db.now))


def _budget_messages(db: Read, team: UUID) -> Iterator[StreamMessage]:
    for budget in serialize_budgets(db, ledger.team_budgets(db, team)):
        yield _message(frozenset({"budget"}), "budget", budget)


def _message(
    topics: frozenset[str], name: str, data: BaseModel, team: UUID | None = None, position: StreamPosition | None = None
) -> StreamMessage:
    cursor = position.text(team) if team and position else None
    return StreamMessage(topics, format_sse_event(data_str=data.model_dump_json(), event=name, id=cursor), position)

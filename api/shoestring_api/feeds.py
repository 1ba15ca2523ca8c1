# SPDX-License-Identifier: Apache-2.0
"""What streams send: each team's feed, read once for all its viewers.

Facts (`event`, `points`, `logs`) have a position and are sent once; states (`job`, `budget`) are what rows say after
them, so that sending one again does no harm. A viewer is nothing but a position: those at the head share what was
read last, one further back reads by itself until it has caught up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self
from uuid import UUID

from pydantic import BaseModel
from shoestring_core import rest
from shoestring_core.errors import InvalidRequest, Unavailable
from shoestring_core.store import events as feed
from shoestring_core.store import ledger, reports, rows
from shoestring_core.store.db import Read, Store
from shoestring_core.store.tables import EventRow, JobRow, MachineRow

from shoestring_api import views
from shoestring_api.wake import Wake

log = logging.getLogger(__name__)

AT_ONCE = 200
KEPT_GROUPS = 200
KEPT_CHARACTERS = 16_000_000
WHOLE = 9
"""Part of a position: everything of its event was sent."""

MONEY_KINDS = frozenset({"budget", "cost", "job", "machine", "alarm"})


@dataclass(frozen=True, order=True)
class Position:
    """How far a viewer has come: through part `part` of event `seq`."""

    seq: int
    part: int = WHOLE

    @classmethod
    def parse(cls, team: UUID, text: str) -> Self:
        cursor, _, part = text.partition(".")
        if part not in ("", "1", "2"):
            raise InvalidRequest("This cursor is not one that this service gave you.", hint="Start without one.")
        return cls(feed.position(team, cursor), int(part or WHOLE))

    def text(self, team: UUID) -> str:
        return feed.cursor(team, self.seq) + ("" if self.part == WHOLE else f".{self.part}")

    @property
    def read_after(self) -> int:
        """The event after which a reader at this position must begin."""
        return self.seq if self.part == WHOLE else self.seq - 1


@dataclass(frozen=True)
class Message:
    """Something to send to those who chose one of its topics. A state has no position of its own."""

    topics: frozenset[str]
    name: str
    data: str
    position: Position | None = None


@dataclass(frozen=True)
class Group:
    """The messages of the events after `after` through `through`."""

    after: int
    through: int
    messages: tuple[Message, ...]

    def past(self, position: Position) -> Iterator[Message]:
        return (one for one in self.messages if one.position is None or one.position > position)

    def size(self) -> int:
        return sum(len(message.data) for message in self.messages)


class Feeds:
    """The feeds that somebody reads now, one for each team."""

    def __init__(self, store: Store, wake: Wake) -> None:
        self._store, self._wake = store, wake
        self._open: dict[UUID, _TeamFeed] = {}

    @contextlib.asynccontextmanager
    async def read(self, team: UUID, position: Position | None) -> AsyncIterator[Reader]:
        """A reader from `position` on; from now on, if None."""
        shared = self._open.get(team)
        if shared is None:
            shared = self._open[team] = _TeamFeed(self._store, self._wake, team)
        shared.readers += 1
        try:
            await shared.begun()
            yield Reader(shared, position or Position(shared.through))
        finally:
            shared.readers -= 1
            if shared.readers == 0:
                self._open.pop(team, None)
                await shared.stop()

    @property
    def readers(self) -> int:
        return sum(shared.readers for shared in self._open.values())

    async def close(self) -> None:
        for shared in list(self._open.values()):
            await shared.stop()


class Reader:
    def __init__(self, shared: _TeamFeed, position: Position) -> None:
        self._shared = shared
        self.position = position

    async def groups(self) -> AsyncIterator[Group | None]:
        """What comes next, until the process ends. None: the position is too old, or of a feed that had come
        further than this one has; everything must be read again."""
        while not self._shared.wake.closing:
            changed = self._shared.changed
            if self._shared.floor <= self.position.read_after <= self._shared.through:
                for group in self._shared.since(self.position):
                    yield group
                    self.position = Position(group.through)
            elif old := await asyncio.to_thread(self._shared.load_old, self.position):
                yield old
                self.position = Position(old.through)
            else:
                self.position = Position(self._shared.through)
                yield None
            if self.position.seq >= self._shared.through:
                await changed.wait()


@dataclass
class _TeamFeed:
    store: Store
    wake: Wake
    team: UUID
    readers: int = 0
    floor: int = 0
    """Kept groups begin after this event."""
    through: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _groups: deque[Group] = field(default_factory=deque)
    _size: int = 0
    _begun: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    async def begun(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._follow())
        await self._begun.wait()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def since(self, position: Position) -> list[Group]:
        return [group for group in self._groups if group.through > position.read_after]

    def load_old(self, position: Position) -> Group | None:
        with self.store.read() as db:
            if feed.too_old(db, self.team, position.read_after):
                return None
            return load(db, self.team, position.read_after)

    async def _follow(self) -> None:
        with self.wake.listen(self.team) as ear:
            while True:
                ear.clear()
                try:
                    if not self._begun.is_set():
                        self.floor = self.through = await asyncio.to_thread(self._head)
                        self._begun.set()
                    group = await asyncio.to_thread(self._load_new)
                except Unavailable as error:
                    log.warning("a feed could not be read: %s", error)
                    await asyncio.sleep(1.0)
                    continue
                if group.through > self.through:
                    self._keep(group)
                if group.through == group.after or self.wake.closing:
                    self._announce()
                    await ear.wait()

    def _head(self) -> int:
        with self.store.read() as db:
            return feed.head(db, self.team)

    def _load_new(self) -> Group:
        with self.store.read() as db:
            return load(db, self.team, self.through)

    def _keep(self, group: Group) -> None:
        self._groups.append(group)
        self._size += group.size()
        self.through = group.through
        while len(self._groups) > 1 and (len(self._groups) > KEPT_GROUPS or self._size > KEPT_CHARACTERS):
            dropped = self._groups.popleft()
            self._size -= dropped.size()
            self.floor = dropped.through
        self._announce()

    def _announce(self) -> None:
        """Wake the readers; those who find nothing new wait on."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


def load(db: Read, team: UUID, after: int) -> Group:
    """The next events past `after` as messages, then the state of what they touched."""
    events = feed.events(db, team, after, AT_ONCE)
    if not events:
        return Group(after, after, ())
    messages = [message for event in events for message in _facts(db, event)]
    messages += _jobs(db, {event.job for event in events if event.job is not None})
    if any(event.kind in MONEY_KINDS for event in events):
        messages += _budgets(db, team)
    return Group(after, events[-1].seq, tuple(messages))


def _facts(db: Read, event: EventRow) -> Iterator[Message]:
    topics = frozenset({f"job:{event.job}"} if event.job else {"budget", "jobs"})
    if event.kind != "batch":
        yield _message(topics, "event", views.event(event), Position(event.seq, 1))
        return
    machine_id, _, seq = (event.ref or "").partition(":")
    machine = db.sql.get(MachineRow, UUID(machine_id))
    if machine is None or event.job is None:
        return
    points, lines = reports.load_batch(db, machine.id, int(seq))
    if points:
        curves = views.curves(points)
        said = rest.PointsMessage(job=event.job, generation=event.generation or 0, curves=curves)
        yield _message(topics, "points", said, Position(event.seq, 1))
    if lines:
        shown = rest.LogsMessage(job=event.job, lines=views.lines(lines, {machine.id: machine}))
        yield _message(topics, "logs", shown, Position(event.seq, 2))


def _jobs(db: Read, ids: Iterable[UUID]) -> Iterator[Message]:
    found = [job for id_ in sorted(ids) if (job := db.sql.get(JobRow, id_)) is not None]
    for row in rows.of_jobs(db, found):
        yield _message(frozenset({"jobs", f"job:{row.job.id}"}), "job", views.job(row, db.now))


def _budgets(db: Read, team: UUID) -> Iterator[Message]:
    for account in ledger.team_budgets(db, team):
        yield _message(frozenset({"budget"}), "budget", views.budget(account, ledger.title(db, account)))


def _message(topics: frozenset[str], name: str, data: BaseModel, position: Position | None = None) -> Message:
    return Message(topics, name, data.model_dump_json(), position)

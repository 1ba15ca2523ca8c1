# SPDX-License-Identifier: Apache-2.0
"""Notify waiting requests of changes: live streams of a team's events, long-polled orders of a job.

A notification carries ids and no data: receivers read the rows again. Commits of this process notify at
once, those of other processes through Redis pub/sub. Because a notification may be lost, nobody waits longer than
`POLL_S` without reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import redis.asyncio as redis
from pydantic import ValidationError
from redis.exceptions import RedisError
from shoestring_core.store.transactions import CommitInfo
from shoestring_core.wakeups import CHANNEL, WakeMessage

log = logging.getLogger(__name__)

POLL_S = 1.0
RECONNECT_S = 1.0
WATCH_REPEAT_S = 10.0
WATCH_EXPIRES_S = 25.0
"""How long another process's announcement that a job is watched stays valid."""
MAX_OUTBOX = 10_000


class ChangeSignal:
    """Set when something may have changed. `clear` it before reading, so that no change falls in between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()

    def clear(self) -> None:
        self._event.clear()

    async def wait(self, timeout_s: float = POLL_S) -> None:
        """Return after `notify` or the timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):  # `wait_for` of Python 3.11 may swallow a cancellation
                await self._event.wait()


@dataclass
class Outbox:
    """What the other processes have not been told yet."""

    changed: set[UUID] = field(default_factory=set)
    watched: set[UUID] = field(default_factory=set)


class ChangeNotifier:
    """One per process. All methods but `on_commit` and `is_watched` must be called in the event loop."""

    def __init__(self, redis_url: str) -> None:
        self.closing = False
        self.connected = False
        self._redis_url = redis_url
        self._process_id = uuid4().hex
        self._signals: dict[UUID, set[ChangeSignal]] = defaultdict(set)
        self._watchers: Counter[UUID] = Counter()
        self._watched_elsewhere: dict[UUID, float] = {}
        self._outbox = Outbox()
        self._outbox_filled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._redis_url:
            loops = (self._receive_messages, self._publish_outbox, self._repeat_watches)
            self._tasks = [asyncio.create_task(loop()) for loop in loops]

    async def stop(self) -> None:
        self.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Wake every waiting request because the process is shutting down."""
        self.closing = True
        for signals in list(self._signals.values()):
            for signal in list(signals):
                signal.notify()

    def on_commit(self, change: CommitInfo) -> None:
        """Notify of a commit; may be called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._notify_everywhere, change.teams | change.jobs)

    @contextlib.contextmanager
    def subscribe(self, *ids: UUID) -> Iterator[ChangeSignal]:
        """Yield a signal of changes to these teams or jobs."""
        signal = ChangeSignal()
        for id_ in ids:
            self._signals[id_].add(signal)
        try:
            yield signal
        finally:
            for id_ in ids:
                self._signals[id_].discard(signal)
                if not self._signals[id_]:
                    del self._signals[id_]

    @contextlib.asynccontextmanager
    async def watch(self, jobs: Iterable[UUID]) -> AsyncIterator[None]:
        """Mark jobs as watched: while they are, their machines report more often."""
        jobs = list(jobs)
        self._watchers.update(jobs)
        self._notify(jobs)
        self._publish(watched=jobs)
        try:
            yield
        finally:
            self._watchers.subtract(jobs)
            self._watchers += Counter()  # drops entries at zero
            self._notify(jobs)

    def is_watched(self, job: UUID) -> bool:
        """Whether a stream of this or another process shows the job."""
        return self._watchers[job] > 0 or self._watched_elsewhere.get(job, 0) > time.monotonic()

    def _notify_everywhere(self, ids: set[UUID]) -> None:
        self._notify(ids)
        self._publish(changed=ids)

    def _notify(self, ids: Iterable[UUID]) -> None:
        for id_ in ids:
            for signal in self._signals.get(id_, ()):
                signal.notify()

    def _publish(self, *, changed: Iterable[UUID] = (), watched: Iterable[UUID] = ()) -> None:
        if self._redis_url and len(self._outbox.changed) < MAX_OUTBOX:
            self._outbox.changed.update(changed)
            self._outbox.watched.update(watched)
            if self._outbox.changed or self._outbox.watched:
                self._outbox_filled.set()

    async def _publish_outbox(self) -> None:
        """Publish changes to the other processes. While Redis doesn't answer, notifications are dropped."""
        while True:
            message = await self._take_outbox()
            with contextlib.suppress(RedisError, OSError):
                async with self._client() as client:
                    while True:
                        await client.publish(CHANNEL, message.model_dump_json())
                        message = await self._take_outbox()
            await asyncio.sleep(RECONNECT_S)

    async def _take_outbox(self) -> WakeMessage:
        await self._outbox_filled.wait()
        self._outbox_filled.clear()
        taken, self._outbox = self._outbox, Outbox()
        return WakeMessage(sender=self._process_id, changed=frozenset(taken.changed), watched=frozenset(taken.watched))

    async def _receive_messages(self) -> None:
        while True:
            try:
                async with self._client() as client, client.pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe(CHANNEL)
                    self.connected = True
                    while True:
                        message = await channel.get_message(timeout=30)
                        if message is None:
                            await client.ping()
                        else:
                            self._handle_message(str(message["data"]))
            except (RedisError, OSError) as error:
                if self.connected:
                    log.warning("Redis does not answer (%s); streams poll every second instead", error)
                self.connected = False
            await asyncio.sleep(RECONNECT_S)

    def _handle_message(self, text: str) -> None:
        try:
            message = WakeMessage.model_validate_json(text)
        except ValidationError as error:
            log.warning("a message that can't be read came through Redis: %s", error)
            return
        if message.sender == self._process_id:
            return
        self._watched_elsewhere |= dict.fromkeys(message.watched, time.monotonic() + WATCH_EXPIRES_S)
        self._notify(message.changed | message.watched)

    async def _repeat_watches(self) -> None:
        while True:
            await asyncio.sleep(WATCH_REPEAT_S)
            self._publish(watched=self._watchers)
            now = time.monotonic()
            self._watched_elsewhere = {job: until for job, until in self._watched_elsewhere.items() if until > now}

    def _client(self) -> redis.Redis:
        return redis.from_url(
            self._redis_url,
            socket_connect_timeout=1.0,
            socket_timeout=35.0,
            decode_responses=True,
            health_check_interval=0,
        )

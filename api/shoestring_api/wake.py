# SPDX-License-Identifier: Apache-2.0
"""Waking those who wait for something to change: streams for a team's feed, held orders for a job.

A wake-up carries no data, only ids: whoever hears it reads the rows. Our own commits ring at once, those of other
processes through Redis; and because any of that may be lost, nobody waits longer than a second without looking.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from uuid import UUID, uuid4

import redis.asyncio as redis
from redis.exceptions import RedisError
from shoestring_core.store.db import Committed

log = logging.getLogger(__name__)

CHANNEL = "shoestring:wake"
POLL_S = 1.0
RECONNECT_S = 1.0
WATCH_REPEAT_S = 10.0
WATCH_LASTS_S = 25.0
"""How long another process's word that somebody watches a job holds."""

_ID = re.compile(r"(watch:)?([0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})")


class Ear:
    """Hears that something may have changed. `clear` it before looking, so that no change falls in between."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()

    def clear(self) -> None:
        self._rung.clear()

    async def wait(self, timeout_s: float = POLL_S) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):  # `wait_for` of Python 3.11 may swallow a cancellation
                await self._rung.wait()


class Wake:
    """One for each process. All methods but `committed` and `watched` belong to the event loop."""

    def __init__(self, redis_url: str) -> None:
        self.closing = False
        self.connected = False
        self._redis_url = redis_url
        self._me = uuid4().hex
        self._ears: dict[UUID, set[Ear]] = defaultdict(set)
        self._watchers: Counter[UUID] = Counter()
        self._watched_elsewhere: dict[UUID, float] = {}
        self._outbox: set[str] = set()
        self._outgoing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._redis_url:
            self._tasks = [asyncio.create_task(work()) for work in (self._hear, self._tell, self._repeat_watches)]

    async def stop(self) -> None:
        self.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Let everybody who waits leave: the process is ending."""
        self.closing = True
        for ears in list(self._ears.values()):
            for ear in list(ears):
                ear.ring()

    def committed(self, change: Committed) -> None:
        """After a commit, from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ring_and_tell, change.teams | change.jobs)

    @contextlib.contextmanager
    def listen(self, *ids: UUID) -> Iterator[Ear]:
        """An ear for changes of these teams or jobs."""
        ear = Ear()
        for id_ in ids:
            self._ears[id_].add(ear)
        try:
            yield ear
        finally:
            for id_ in ids:
                self._ears[id_].discard(ear)
                if not self._ears[id_]:
                    del self._ears[id_]

    @contextlib.asynccontextmanager
    async def watch(self, jobs: Iterable[UUID]) -> AsyncIterator[None]:
        """While somebody watches these jobs, their machines report more often."""
        jobs = list(jobs)
        self._watchers.update(jobs)
        self._ring(jobs)
        self._post(f"watch:{job}" for job in jobs)
        try:
            yield
        finally:
            self._watchers.subtract(jobs)
            self._watchers += Counter()  # forgets those at zero
            self._ring(jobs)

    def watched(self, job: UUID) -> bool:
        """Whether somebody watches the job, here or at another process."""
        return self._watchers[job] > 0 or self._watched_elsewhere.get(job, 0) > time.monotonic()

    def _ring_and_tell(self, ids: set[UUID]) -> None:
        self._ring(ids)
        self._post(map(str, ids))

    def _ring(self, ids: Iterable[UUID]) -> None:
        for id_ in ids:
            for ear in self._ears.get(id_, ()):
                ear.ring()

    def _post(self, words: Iterable[str]) -> None:
        if self._redis_url and len(self._outbox) < 10_000:
            self._outbox.update(words)
            self._outgoing.set()

    async def _tell(self) -> None:
        """Publish what has changed. A Redis that doesn't answer loses wake-ups, and only these."""
        while True:
            await self._outgoing.wait()
            self._outgoing.clear()
            words, self._outbox = self._outbox, set()
            with contextlib.suppress(RedisError, OSError):
                async with self._client() as client:
                    while words:
                        await client.publish(CHANNEL, " ".join((self._me, *sorted(words))))
                        await self._outgoing.wait()
                        self._outgoing.clear()
                        words, self._outbox = self._outbox, set()
            await asyncio.sleep(RECONNECT_S)

    async def _hear(self) -> None:
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
                            self._heard(str(message["data"]))
            except (RedisError, OSError) as error:
                if self.connected:
                    log.warning("Redis does not answer (%s); streams look each second instead", error)
                self.connected = False
            await asyncio.sleep(RECONNECT_S)

    def _heard(self, words: str) -> None:
        if words.startswith(self._me):
            return
        ids = set()
        for watch, text in _ID.findall(words):
            ids.add(UUID(text))
            if watch:
                self._watched_elsewhere[UUID(text)] = time.monotonic() + WATCH_LASTS_S
        self._ring(ids)

    async def _repeat_watches(self) -> None:
        while True:
            await asyncio.sleep(WATCH_REPEAT_S)
            self._post(f"watch:{job}" for job in self._watchers)
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

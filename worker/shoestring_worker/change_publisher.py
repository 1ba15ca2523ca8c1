# SPDX-License-Identifier: Apache-2.0
"""Publishes which teams and jobs a commit changed, so that the API's streams read again. A lost message is harmless."""

from __future__ import annotations

import logging
import queue
import threading
from uuid import UUID

import redis
from shoestring_core.store.transactions import CommitInfo
from shoestring_core.wakeups import CHANNEL, WakeMessage

log = logging.getLogger(__name__)

TIMEOUT_S = 0.2


class ChangePublisher:
    """A listener of `Store.on_commit`. Publishes from its own thread; errors are counted and dropped."""

    def __init__(self, redis_url: str) -> None:
        self.dropped = 0
        self._client = redis.Redis.from_url(
            redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=None
        )
        self._changed: queue.SimpleQueue[set[UUID]] = queue.SimpleQueue()
        threading.Thread(target=self._publish, name="changes", daemon=True).start()

    def __call__(self, committed: CommitInfo) -> None:
        if committed.teams:
            self._changed.put(committed.teams | committed.jobs)  # streams wait for teams, long-polled orders for jobs

    def _publish(self) -> None:
        while True:
            changed = set(self._changed.get())
            while not self._changed.empty():
                changed |= self._changed.get()
            try:
                self._client.publish(CHANNEL, WakeMessage(changed=frozenset(changed)).model_dump_json())
            except Exception as error:  # noqa: BLE001 - whatever it is, later changes must be published
                self.dropped += 1
                log.debug("a message about a change was dropped (%s so far): %s", self.dropped, error)

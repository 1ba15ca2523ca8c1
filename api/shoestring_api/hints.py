# SPDX-License-Identifier: Apache-2.0
"""Hints to the worker that a tick is worth running now. A hint that is lost costs the wait for the next tick."""

from __future__ import annotations

import logging
import queue
import threading

from celery import Celery
from kombu.exceptions import OperationalError
from shoestring_core.store.db import Committed

log = logging.getLogger(__name__)

TASK = "shoestring.tick"
TIMEOUT_S = 0.2
EXPIRES_S = 30


class Hints:
    """Sends hints from a thread of its own, so that no request waits for the broker. Errors are counted and dropped."""

    def __init__(self, redis_url: str) -> None:
        self.sent = 0
        self.dropped = 0
        self._app = Celery("shoestring", broker=broker_url(redis_url))
        self._app.conf.update(
            broker_connection_timeout=TIMEOUT_S,
            broker_transport_options={
                "socket_timeout": TIMEOUT_S,
                "socket_connect_timeout": TIMEOUT_S,
                "max_retries": 0,
            },
            broker_connection_retry_on_startup=False,
            task_publish_retry=False,
        )
        self._wanted: queue.Queue[bool] = queue.Queue(maxsize=1)  # one that waits stands for all
        self._thread = threading.Thread(target=self._send, name="hints", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send what is wanted, then end; a broker that doesn't answer is not waited for."""
        self._wanted.put(False)
        self._thread.join(timeout=2.0)

    def committed(self, change: Committed) -> None:
        """After a commit, from any thread."""
        if change.hint:
            try:
                self._wanted.put_nowait(True)
            except queue.Full:
                pass

    def _send(self) -> None:
        while self._wanted.get():
            try:
                self._app.send_task(TASK, ignore_result=True, retry=False, expires=EXPIRES_S)
                self.sent += 1
            except (OperationalError, OSError) as error:
                self.dropped += 1
                log.debug("a hint was dropped: %s", error)


def broker_url(redis_url: str) -> str:
    """Celery's name for a Redis URL: a unix socket is redis+socket:// there."""
    return redis_url.replace("unix://", "redis+socket://", 1) if redis_url.startswith("unix://") else redis_url

# SPDX-License-Identifier: Apache-2.0
"""Ask the worker, through Celery, to run its tick now. A lost hint only delays the change until the next tick."""

from __future__ import annotations

import logging
import os
import threading

from celery import Celery
from shoestring_core.store.transactions import CommitInfo
from shoestring_core.wakeups import CELERY_KEY_PREFIX, TICK_TASK, celery_broker_url, forget_celery_variables

log = logging.getLogger(__name__)

PAUSE_S, LONGEST_PAUSE_S = 0.05, 0.25
"""After a hint, before the next, which covers all commits in between. While commits don't stop, pauses get longer:
however many there are, hints cost little."""
TIMEOUT_S, STOP_TIMEOUT_S = 0.2, 2.0
EXPIRES_S = 30


def next_pause(pause_s: float, *, more: bool) -> float:
    """Return the pause after the next hint. more: whether there were commits during this one."""
    return min(2 * pause_s, LONGEST_PAUSE_S) if more else PAUSE_S


class TickHints:
    """Sends hints from a thread, so that no request waits for the broker. Errors are counted and dropped."""

    def __init__(self, redis_url: str) -> None:
        self.sent = 0
        self.dropped = 0
        forget_celery_variables(os.environ)
        self._app = Celery("shoestring", broker=celery_broker_url(redis_url))
        self._app.conf.update(
            broker_connection_timeout=TIMEOUT_S,
            broker_transport_options={
                "global_keyprefix": CELERY_KEY_PREFIX,
                "socket_timeout": TIMEOUT_S,
                "socket_connect_timeout": TIMEOUT_S,
                "max_retries": 0,
            },
            broker_connection_retry_on_startup=False,
            task_publish_retry=False,
        )
        self._requested = False  # one pending hint covers every commit before it
        self._stopping = threading.Event()
        self._awake = threading.Event()
        self._thread = threading.Thread(target=self._send, name="tick-hints", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send the pending hint and end the thread, without waiting long for a broker that doesn't answer."""
        self._stopping.set()
        self._awake.set()
        self._thread.join(timeout=STOP_TIMEOUT_S)

    def on_commit(self, change: CommitInfo) -> None:
        """Queue a hint after a commit that asks for one; may be called from any thread."""
        if change.tick_requested:
            self._requested = True
            self._awake.set()

    def _send(self) -> None:
        pause_s = PAUSE_S
        while True:
            self._awake.wait()
            self._awake.clear()
            stopping, requested, self._requested = self._stopping.is_set(), self._requested, False
            if requested:
                self._send_one()
            if stopping:
                return
            self._stopping.wait(pause_s)
            pause_s = next_pause(pause_s, more=self._requested)

    def _send_one(self) -> None:
        try:
            self._app.send_task(TICK_TASK, ignore_result=True, retry=False, expires=EXPIRES_S)
            self.sent += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, later hints must be sent
            self.dropped += 1
            log.debug("a tick hint was dropped: %s", error)

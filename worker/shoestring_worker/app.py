# SPDX-License-Identifier: Apache-2.0
"""The worker process: Celery messages only trigger ticks and launches; the work itself is in the database.

    celery -A shoestring_worker.app worker --pool threads

A lost message costs at most a tick, a duplicate costs nothing. When no tick message has come for two intervals, because
the broker or beat is down, a thread of the worker ticks by itself.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from typing import Any
from uuid import UUID

from celery import signals
from kombu.exceptions import OperationalError
from shoestring_core.store import ledger
from shoestring_core.store.db import open_store
from shoestring_core.store.objects import open_objects
from shoestring_core.wakeups import TICK_TASK

from shoestring_worker.celery_app import app, settings
from shoestring_worker.change_publisher import ChangePublisher
from shoestring_worker.control_loop import ControlLoop
from shoestring_worker.providers.registry import open_providers
from shoestring_worker.steps import write

log = logging.getLogger(__name__)


@app.task(name=TICK_TASK)
def tick() -> None:
    """Do everything that is due."""
    _note_tick()
    control_loop().tick()


@app.task(name="shoestring.launch")
def launch(machine: str) -> None:
    """Launch one planned machine."""
    control_loop().launch(UUID(machine))


def control_loop() -> ControlLoop:
    """This process's control loop, made on first use."""
    global _control_loop
    with _making:
        if _control_loop is None:
            _control_loop = _make_control_loop()
            gc.freeze()  # modules live to the end: a full collection that looked at them would hold up a tick for 0.1 s
        return _control_loop


_control_loop: ControlLoop | None = None
_making = threading.Lock()
_last_tick = time.monotonic()


def _make_control_loop() -> ControlLoop:
    secret = settings.server_secret()
    store = open_store(settings.database_url)
    store.on_commit.append(ChangePublisher(settings.redis_url))
    write(store, ledger.set_half_life, settings.recent_half_life)
    return ControlLoop(
        store,
        open_providers(settings),
        open_objects(settings.object_store, secret, settings.agent_url, settings.object_store_endpoint_url),
        settings.timeouts,
        secret,
        settings.agent_url.rstrip("/"),
        settings.ca,
        offload_launch=_enqueue_launch,
    )


def _enqueue_launch(machine: UUID) -> None:
    with contextlib.suppress(OperationalError, OSError):
        launch.apply_async((str(machine),), retry=False, expires=settings.tick_interval_s * 2)


# --- ticking without a broker -------------------------------------------------------------------------------


@signals.worker_init.connect
def start_ticking(**_: Any) -> None:
    threading.Thread(target=_tick_without_messages, name="tick", daemon=True).start()


@signals.worker_shutdown.connect
def stop_ticking(**_: Any) -> None:
    _stopped.set()


_stopped = threading.Event()


def _note_tick() -> None:
    global _last_tick
    _last_tick = time.monotonic()


def _tick_without_messages() -> None:
    """Tick when no message has come for two intervals. Failures are logged; the next interval tries again."""
    while not _stopped.wait(settings.tick_interval_s):
        if time.monotonic() - _last_tick < 2 * settings.tick_interval_s:
            continue
        try:
            control_loop().tick()
        except Exception:
            log.exception("a tick failed; the next one tries again")

# SPDX-License-Identifier: Apache-2.0
"""The Celery application: broker, options and schedule, without the tasks and all that they import.

    celery -A shoestring_worker.celery_app beat
    celery -A shoestring_worker.celery_app inspect ping

That is all that beat and a ping need; the worker's is `app.py`, which adds the tasks.
"""

from __future__ import annotations

import os

from celery import Celery
from pydantic import ValidationError
from shoestring_core.errors import explain_setting
from shoestring_core.wakeups import CELERY_KEY_PREFIX, TICK_TASK, celery_broker_url, forget_celery_variables

from shoestring_worker.settings import WorkerSettings


def read_settings() -> WorkerSettings:
    """From the environment. Ends the process, and names the variables, if one can't be used."""
    try:
        return WorkerSettings()
    except ValidationError as error:
        problems = (explain_setting(one["loc"], one["msg"]) for one in error.errors())
        raise SystemExit(f"shoestring worker: {'; '.join(problems)}") from error


def make_app(settings: WorkerSettings) -> Celery:
    """The Celery application; docs/decisions explains how its options were measured."""
    forget_celery_variables(os.environ)
    celery = Celery("shoestring", broker=celery_broker_url(settings.redis_url))
    celery.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        # Acknowledged on receipt: a lost message costs only a tick, and kombu 5.7 ends the whole process when the
        # broker goes away while it holds unacknowledged messages.
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
        broker_transport_options={
            "global_keyprefix": CELERY_KEY_PREFIX,
            "visibility_timeout": 120,
            # Without these two a killed worker's message is redelivered after minutes, not seconds.
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "socket_connect_timeout": 1,
            "socket_timeout": 5,
        },
        beat_schedule={
            "tick": {
                "task": TICK_TASK,
                "schedule": settings.tick_interval_s,
                # A tick message that is not received in time is useless: the next one does the same.
                "options": {"expires": settings.tick_interval_s * 2, "retry": False},
            }
        },
        beat_max_loop_interval=max(1.0, settings.tick_interval_s),
        timezone="UTC",
    )
    return celery


settings = read_settings()
app = make_app(settings)

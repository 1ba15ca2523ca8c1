# SPDX-License-Identifier: Apache-2.0
"""Messages between our processes that only save a wait: wake-ups over Redis, and the task that makes the worker tick.

Losing one is harmless: rows are the truth, and each waiter reads them again after a moment.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict

CHANNEL = "shoestring:wake"
"""The Redis channel of `WakeMessage`."""

TICK_TASK = "shoestring.tick"
"""The Celery task that runs a tick of the control loop."""

CELERY_KEY_PREFIX = "shoestring:"
"""Before every key and channel of Celery in Redis, so that another application's workers may use the same one."""


class WakeMessage(BaseModel):
    """What one process notifies the others of after a commit.

    sender   the process, which ignores its own messages
    changed  teams and jobs with new rows
    watched  jobs that a stream of the sender shows, whose machines report more often
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    sender: str = ""
    changed: frozenset[UUID] = frozenset()
    watched: frozenset[UUID] = frozenset()


def _require_redis(url: str) -> str:
    scheme, _, place = url.partition("://")
    if url and (scheme not in ("redis", "rediss", "unix") or not place):
        raise ValueError("no address of a Redis server: give redis://HOST:6379/0, rediss://HOST:6379/0 or unix:///PATH")
    return url


RedisUrl = Annotated[str, AfterValidator(_require_redis)]
"""Of a Redis server; empty: none."""


def celery_broker_url(redis_url: str) -> str:
    """A Redis URL in Celery's notation, where a unix socket is redis+socket://."""
    return redis_url.replace("unix://", "redis+socket://", 1) if redis_url.startswith("unix://") else redis_url


def forget_celery_variables(environment: MutableMapping[str, str]) -> None:
    """Celery prefers CELERY_BROKER_URL and others to its options, but they may be meant for another application."""
    for name in [name for name in environment if name.startswith("CELERY_")]:
        del environment[name]

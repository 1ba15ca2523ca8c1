# SPDX-License-Identifier: Apache-2.0
"""What all steps of a tick share: a transaction for each write, and one policy for failures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar

from shoestring_core.decide.funding import Storage
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import DatabaseUnavailable, Unavailable
from shoestring_core.store.db import Store
from shoestring_core.store.objects import Objects
from shoestring_core.store.transactions import Write

from shoestring_worker.failpoints import around
from shoestring_worker.providers.base import OutcomeUnknown

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

LOG_INTERVAL_S = 60.0
"""How often a failure that repeats in every tick is logged."""


@dataclass
class ItemRunner:
    """Serves the items of a tick: attempts, jobs, machines, providers. One that fails keeps no other from its turn."""

    monotonic: Callable[[], float]
    _failing: dict[str, _Failure] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, item: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Do one step for one item, named by `item`. If it fails, that is logged, and the next tick tries again.

        Raises DatabaseUnavailable: then no other item can be served either.
        """
        try:
            result = function(*args, **kwargs)
        except DatabaseUnavailable:
            raise
        except (OutcomeUnknown, Unavailable) as failure:
            self.warn(item, str(failure))
        except Exception:
            if times := self._should_log(item):
                log.exception("%s failed%s; the next tick tries again", item, times)
        else:
            with self._lock:
                self._failing.pop(item, None)
            return result
        return None

    def warn(self, item: str, problem: str) -> None:
        """Log a problem; one that repeats in every tick once per LOG_INTERVAL_S."""
        if times := self._should_log(item):
            log.warning("%s: %s%s", item, problem, times)

    def _should_log(self, item: str) -> str:
        """How often the item has failed, in brackets; empty if that was logged a moment ago."""
        now = self.monotonic()
        with self._lock:
            self._failing = {key: one for key, one in self._failing.items() if now < one.last_at + 2 * LOG_INTERVAL_S}
            record = self._failing.setdefault(item, _Failure())
            record.count, record.last_at = record.count + 1, now
            if now < record.logged_at + LOG_INTERVAL_S:
                return ""
            record.logged_at = now
            return f" (failure {record.count} in a row)"


@dataclass
class _Failure:
    count: int = 0
    last_at: float = float("-inf")
    logged_at: float = float("-inf")


def find_storage(objects: Objects) -> Storage:
    """How long checkpoints can be stored, by the end of the object store's credentials."""
    try:
        end = objects.urls_end_by()
    except Unavailable as unavailable:
        return Storage(problem=f"{unavailable} {unavailable.hint or ''}".strip())
    return Storage(None if end is None else end * S)


def write(store: Store, function: Callable[Concatenate[Write, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function of the store in its own transaction, whose failpoint has its name."""
    return around(function.__name__, lambda: store.write(lambda db: function(db, *args, **kwargs)))

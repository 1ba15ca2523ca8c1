# SPDX-License-Identifier: Apache-2.0
"""Request limits: a token bucket per action and region.

source  docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict

from shoestring_worker.fake_ec2.wire import Call


class Limit(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    size: float
    per_s: float


class Throttle:
    """Off until limits are set."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self.set({})

    def set(self, limits: Mapping[str, Limit]) -> None:
        """Limits by action. Every bucket is full again."""
        with self._lock:
            self._limits, self._buckets = dict(limits), dict[tuple[str, str], tuple[float, float]]()

    def allows(self, call: Call) -> bool:
        with self._lock:
            if (limit := self._limits.get(call.action)) is None:
                return True
            now = self._monotonic()
            tokens, since = self._buckets.get((call.region, call.action), (limit.size, now))
            tokens = min(limit.size, tokens + (now - since) * limit.per_s)
            allowed = tokens >= 1
            self._buckets[call.region, call.action] = (tokens - allowed, now)
            return allowed

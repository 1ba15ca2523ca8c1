# SPDX-License-Identifier: Apache-2.0
"""EC2's request limits, kept on our side: a call waits for its token instead of being throttled.

EC2 counts each action by itself in each region, and so does this: however many launches wait, a termination doesn't
wait for them.

source  docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html: a token bucket per action, account and region
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RequestLimit:
    """A bucket of `size` tokens, refilled with `per_s` tokens a second."""

    size: float
    per_s: float


LIMITS = {
    "RunInstances": RequestLimit(5, 2),
    "TerminateInstances": RequestLimit(50, 5),  # that of mutating actions
    "DescribeInstances": RequestLimit(100, 20),
    "DescribeImages": RequestLimit(100, 20),
    "DescribeSpotPriceHistory": RequestLimit(100, 20),
    "DescribeInstanceTypes": RequestLimit(100, 20),
    "DescribeRegions": RequestLimit(100, 20),
    "DescribeVolumes": RequestLimit(100, 20),
    "DescribeAddresses": RequestLimit(100, 20),
    "DescribeNetworkInterfaces": RequestLimit(100, 20),
    "DescribeSpotInstanceRequests": RequestLimit(100, 20),
    "DescribePlacementGroups": RequestLimit(100, 20),
    "CreatePlacementGroup": RequestLimit(50, 5),
    "DeletePlacementGroup": RequestLimit(50, 5),
    "DeleteNetworkInterface": RequestLimit(50, 5),
    "DeleteVolume": RequestLimit(50, 5),
    "ReleaseAddress": RequestLimit(50, 5),
    "CancelSpotInstanceRequests": RequestLimit(50, 5),
    # of Service Quotas: docs.aws.amazon.com/servicequotas/latest/userguide/reference_limits.html
    "ListServiceQuotas": RequestLimit(10, 10),
    # the Price List API's isn't published; one call for each page of each region in five minutes stays below any
    "GetProducts": RequestLimit(10, 5),
}


@dataclass
class TokenBucket:
    limit: RequestLimit
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._tokens, self._refilled_at = self.limit.size, self.monotonic()

    def take(self, patience_s: float) -> bool:
        """Take a token, waiting for it. False: none comes within `patience_s`, and none was taken."""
        with self._lock:
            self._refill()
            wait_s = max(0.0, 1 - self._tokens) / self.limit.per_s
            if wait_s > patience_s:
                return False
            self._tokens -= 1  # below zero: those who come later wait longer
        if wait_s:
            self.sleep(wait_s)
        return True

    def empty(self) -> None:
        """EC2 has throttled a call: others use this account as well."""
        with self._lock:
            self._refill()
            self._tokens = min(self._tokens, 0.0)

    def _refill(self) -> None:
        now = self.monotonic()
        self._tokens = min(self.limit.size, self._tokens + (now - self._refilled_at) * self.limit.per_s)
        self._refilled_at = now


class RateLimits:
    """The buckets of an account, by region and action."""

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._monotonic, self._sleep = monotonic, sleep
        self._buckets: dict[tuple[str, str], TokenBucket] = {}
        self._lock = threading.Lock()

    def bucket(self, region: str, action: str) -> TokenBucket:
        with self._lock:
            if (region, action) not in self._buckets:
                self._buckets[region, action] = TokenBucket(LIMITS[action], self._monotonic, self._sleep)
            return self._buckets[region, action]

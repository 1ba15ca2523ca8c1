# SPDX-License-Identifier: Apache-2.0
"""The authentication of open streams: repeated once for all streams of a key or of a browser's session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from weakref import WeakValueDictionary

from fastapi.concurrency import run_in_threadpool
from shoestring_core.store.identity import Principal

AUTHENTICATION_INTERVAL_S = 5.0
"""A stream is authenticated again this often: it ends with the key or session that it was opened with."""


class StreamAuthentications:
    """One per process."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._shared: WeakValueDictionary[Principal, _SharedAuthentication] = WeakValueDictionary()

    def open(self, principal: Principal, is_valid: Callable[[], bool]) -> StreamAuthentication:
        """For a stream whose caller has just been authenticated.

        A principal names the key or session that authenticates it. is_valid: whether that still does; blocks
        """
        shared = self._shared.get(principal)
        if shared is None:
            shared = self._shared[principal] = _SharedAuthentication(is_valid, self._monotonic)
        return StreamAuthentication(shared)


class StreamAuthentication:
    """Of one stream."""

    def __init__(self, shared: _SharedAuthentication) -> None:
        self._shared, self._authenticated_at = shared, shared.monotonic()

    async def is_valid(self) -> bool:
        """Whether the stream may continue; what is revoked is noticed within AUTHENTICATION_INTERVAL_S."""
        if self._shared.monotonic() > self._authenticated_at + AUTHENTICATION_INTERVAL_S:
            valid, self._authenticated_at = await self._shared.result()
            return valid
        return True


class _SharedAuthentication:
    def __init__(self, is_valid: Callable[[], bool], monotonic: Callable[[], float]) -> None:
        self._is_valid, self.monotonic = is_valid, monotonic
        self._began_at = float("-inf")
        self._running: asyncio.Future[bool]

    async def result(self) -> tuple[bool, float]:
        """Of an authentication that began within the interval, and when it began."""
        if self.monotonic() > self._began_at + AUTHENTICATION_INTERVAL_S:
            self._began_at = self.monotonic()
            self._running = asyncio.ensure_future(run_in_threadpool(self._is_valid))
        began_at = self._began_at
        return await asyncio.shield(self._running), began_at

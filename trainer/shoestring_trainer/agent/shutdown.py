# SPDX-License-Identifier: Apache-2.0
"""Why and by when this machine shuts down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shoestring_trainer.agent.funding import FundingLease
from shoestring_trainer.agent.service_client import boottime

POLL_S = 0.05


class Shutdown:
    """Begins once, for the first reason; later reasons can only make it more urgent. Times are `boottime`."""

    def __init__(self, funding: FundingLease) -> None:
        self.reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.exit_code = 0
        self.drain_deadline = float("inf")
        """Until when the ranks may take to checkpoint."""
        self._exit_deadline = float("inf")
        self._funding = funding

    @property
    def has_begun(self) -> bool:
        return self.reason.done()

    def begin(self, reason: str, *, by: float = float("inf"), drain_by: float = float("inf"), code: int = 0) -> None:
        """Shut down by then at the latest."""
        self._exit_deadline = min(self._exit_deadline, by)
        self.drain_deadline = min(self.drain_deadline, drain_by)
        if not self.has_begun:
            self.exit_code = code
            self.reason.set_result(reason)

    async def wait_until(self, condition: Callable[[], bool], by: float = float("inf"), reserve_s: float = 0.0) -> bool:
        """Wait for a condition until `by`, or `reserve_s` before this machine must have ended; False on time-out."""
        while not condition():
            if boottime() >= min(by, min(self._exit_deadline, self._funding.exit_deadline) - reserve_s):
                return False
            await asyncio.sleep(POLL_S)
        return True

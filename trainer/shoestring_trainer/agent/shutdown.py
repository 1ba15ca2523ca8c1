# SPDX-License-Identifier: Apache-2.0
"""Why and by when this machine shuts down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from shoestring_trainer.agent.funding import FundingLease
from shoestring_trainer.agent.service_client import boottime

log = logging.getLogger("shoestring.agent")

POLL_S = 0.05


class Shutdown:
    """Begins once, for the first reason; later reasons can only make it more urgent. Times are `boottime`.

    left_until  the service lets the machine live on until then, once its work is over, because its provider makes it
                free by interrupting it
    """

    def __init__(self, funding: FundingLease) -> None:
        self.reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.exit_code = 0
        self.drain_deadline = float("inf")
        """Until when the ranks may take to checkpoint."""
        self.left_until = 0.0
        self._work_deadline = float("inf")
        self._ends_itself = False
        self._funding = funding

    @property
    def has_begun(self) -> bool:
        return self.reason.done()

    @property
    def has_deadline(self) -> bool:
        """Whether this machine is to end at a known time: until then an upload costs nothing."""
        return self._work_deadline < float("inf")

    def begin(
        self,
        reason: str,
        *,
        by: float = float("inf"),
        work_by: float = float("inf"),
        drain_by: float = float("inf"),
        code: int = 0,
    ) -> None:
        """Shut down `by` then at the latest; or `work_by`, because the provider ends the machine at that time."""
        self._ends_itself |= by < float("inf")
        self._work_deadline = min(self._work_deadline, by, work_by)
        self.drain_deadline = min(self.drain_deadline, drain_by)
        if not self.has_begun:
            self.exit_code = code
            self.reason.set_result(reason)

    async def wait_until(self, condition: Callable[[], bool], by: float = float("inf"), reserve_s: float = 0.0) -> bool:
        """Wait for a condition until `by`, or `reserve_s` before this machine must have ended; False on time-out."""
        while not condition():
            if boottime() >= min(by, min(self._work_deadline, self._funding.exit_deadline) - reserve_s):
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def leave_to_provider(self) -> None:
        """The work is over: wait while this machine is free if its provider ends it, and billed if it ends itself."""
        until = min(self.left_until, self._funding.exit_deadline)
        if boottime() < until:
            log.info("the provider may end this machine for nothing: it ends itself in %.0f s", until - boottime())
        while boottime() < until and not self._ends_itself:
            await asyncio.sleep(POLL_S)

# SPDX-License-Identifier: Apache-2.0
"""Reports to the service: batches of the spool and this machine's status in its generation. Replies carry orders."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from shoestring_core.wire import MemberStatus, ReportBatch

from shoestring_trainer.agent.service_client import (
    RequestRejected,
    ServiceClient,
    TimedReply,
    Unreachable,
    backoff_delays,
    boottime,
)
from shoestring_trainer.agent.spool import Spool

log = logging.getLogger("shoestring.agent")

HEARTBEAT_S = 5.0
SEND_EARLY_S = 0.05
"""A report leaves so much before it is due, so that a new line is stored within the interval."""


class Reporter:
    """Sends reports and polls for orders, for as long as the agent runs.

    read_files   called before each report, so that it carries what the ranks have written
    on_reply     gets every reply
    on_rejected  gets every rejection that no other report would cure: the session is not accepted
    """

    def __init__(
        self,
        service: ServiceClient,
        spool: Spool,
        *,
        read_files: Callable[[], None],
        on_reply: Callable[[TimedReply], None],
        on_rejected: Callable[[RequestRejected], None],
    ) -> None:
        self.notice_at: float | None = None
        """Unix time of the preemption notice, once there is one."""
        self.interval_s = HEARTBEAT_S
        self._service, self._spool = service, spool
        self._read_files, self._on_reply, self._on_rejected = read_files, on_reply, on_rejected
        self._etag = ""
        self._status: MemberStatus | None = None
        self._status_reported = True
        self._woken, self._urgent = asyncio.Event(), True

    @property
    def is_up_to_date(self) -> bool:
        """Whether the service has stored everything."""
        return self._status_reported and not self._spool.unacknowledged and not self._spool.has_draft

    def set_status(self, status: MemberStatus) -> None:
        """Report this machine's new status at once."""
        exits = [(end.rank, end.outcome) for end in status.exits]
        log.info("generation %d: %s %s", status.generation, status.state, exits or "")
        self._status, self._status_reported = status, False
        self.wake(urgent=True)

    def wake(self, *, urgent: bool = False) -> None:
        """There is something to report; `urgent` reports at once."""
        self._urgent |= urgent
        self._woken.set()

    def apply_reply(self, reply: TimedReply) -> None:
        """Take in a reply. Replies may arrive in any order: leases and numbers only grow, orders only advance."""
        self._etag, self.interval_s = reply.reply.etag, reply.reply.report_interval_s
        self._spool.acknowledge(reply.reply.acked_seq)
        self._on_reply(reply)

    async def poll_orders(self) -> None:
        """Long-poll for orders, so that they arrive between reports."""
        delays = backoff_delays()
        while True:
            try:
                self.apply_reply(await self._service.orders(self._etag))
                delays = backoff_delays()
            except Unreachable:
                await asyncio.sleep(next(delays))
            except RequestRejected as rejection:
                self._on_rejected(rejection)
                await asyncio.sleep(next(delays))

    async def run(self) -> None:
        """Report at once if urgent, every `interval_s` with news, every HEARTBEAT_S without."""
        delays, last, failing = backoff_delays(), -HEARTBEAT_S, False
        while True:
            news = self._spool.unacknowledged or self._spool.has_draft
            due = last + (self.interval_s - SEND_EARLY_S if news else max(HEARTBEAT_S, self.interval_s))
            if not self._urgent and (left_s := due - boottime()) > 0:
                self._woken.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await self._woken.wait()
                continue
            self._read_files()
            if self._spool.unacknowledged == 0 or boottime() - last >= HEARTBEAT_S:
                self._spool.seal()
            self._urgent, last = False, boottime()
            try:
                await self._report()
            except Unreachable as error:
                if not failing:
                    log.warning("the service can't be reached, training continues: %s", error)
                failing, self._urgent = True, True
                await asyncio.sleep(next(delays))
                continue
            if failing:
                log.info("the service answers again, %d batches to send", self._spool.unacknowledged)
            delays, failing = backoff_delays(), False
            self._urgent |= self._spool.unacknowledged > 0

    async def _report(self) -> None:
        """Send the oldest batch, and the status if it is new. Raises Unreachable."""
        batch = self._spool.oldest()
        status = None if self._status_reported else self._status
        try:
            reply = await self._service.report(batch, status, self.notice_at)
        except RequestRejected as rejection:
            return self._resolve(rejection, batch, status)
        if status is self._status:
            self._status_reported = True
        self.apply_reply(reply)
        if batch and reply.reply.acked_seq < batch.seq:
            raise Unreachable(f"batch {batch.seq} was answered, but not stored")

    def _resolve(self, rejection: RequestRejected, batch: ReportBatch | None, status: MemberStatus | None) -> None:
        """Make the next report one that the service accepts. Raises Unreachable if nothing here can."""
        if rejection.code == "batch-gap" and rejection.expected:
            log.warning("the service expects batch %d next", rejection.expected)
            self._spool.resend_from(rejection.expected)
        elif rejection.status in (400, 413, 422) and batch and self._spool.set_aside(batch.seq, str(rejection)):
            log.error("batch %d was rejected; its content is in rejected/: %s", batch.seq, rejection)
        elif rejection.status not in (401, 403) and status is self._status and not self._status_reported:
            log.error("%s was rejected: %s", status, rejection)
            self._status_reported = True
        else:
            self._on_rejected(rejection)
            raise Unreachable(str(rejection))
        self._urgent = True

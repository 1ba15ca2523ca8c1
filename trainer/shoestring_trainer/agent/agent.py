# SPDX-License-Identifier: Apache-2.0
"""The agent of a rented machine: `python -m shoestring_trainer agent`, in the machine's folder.

It reads its boot data, registers with its boot token, and then executes the service's orders until the machine is no
longer needed, preempted or no longer funded. One asyncio task per concern: reports, orders, files, preemption, money.

    SHOESTRING_MACHINE_DIR              the machine's folder (the current one if unset)
    SHOESTRING_BOOT_FILE                a file with the boot data; if unset, these are the user data
    AWS_EC2_METADATA_SERVICE_ENDPOINT   where the metadata service is, if not at EC2's address
    SHOESTRING_POWEROFF                 the only command that powers a machine off, run last; real user data sets it
    SHOESTRING_SHARED_COMPUTER          set where several machines share one computer's cores
    SHOESTRING_RANK_GROUP               number of the group that ranks are in, which the machine's packet filter knows
    SHOESTRING_RANK_USER                number of the user that ranks are, and of its group; if unset, the agent's user
    SHOESTRING_AGENT_AWS_…              AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and
                                        AWS_ENDPOINT_URL with this prefix: credentials to read data in S3
    SHOESTRING_AGENT_RANK_COMMAND       for tests: a command that starts stand-in ranks, with torchrun's arguments

Exit codes are those of sysexits.h: 0 shut down as it should, 73 and 74 the folder can't be written, 75 the service
never answered, 77 the service rejects this machine, 78 no usable user data.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from shoestring_core.wire import Order, RegisterRequest

from shoestring_trainer import processes
from shoestring_trainer.agent.boot import (
    AgentStartupError,
    create_folders,
    find_address,
    load_or_create_session_secret,
    read_boot_data,
    register,
)
from shoestring_trainer.agent.deadman import DeadManSwitch, power_off
from shoestring_trainer.agent.funding import DEADMAN_RESERVE_S, FundingLease
from shoestring_trainer.agent.generations import GenerationRunner
from shoestring_trainer.agent.machine_monitor import MachineMonitor
from shoestring_trainer.agent.metadata_client import ENDPOINT, MetadataClient, MetadataUnavailable
from shoestring_trainer.agent.rank_output import RankOutputCollector
from shoestring_trainer.agent.rank_user import UMASK, find_rank_user
from shoestring_trainer.agent.ranks import MACHINE_VARIABLE, terminate_ranks
from shoestring_trainer.agent.reporter import Reporter
from shoestring_trainer.agent.service_client import RequestRejected, ServiceClient, TimedReply, boottime
from shoestring_trainer.agent.shutdown import Shutdown
from shoestring_trainer.agent.spool import Spool

log = logging.getLogger("shoestring.agent")

POLL_S, WATCHED_POLL_S, DRAINING_POLL_S = 0.2, 0.1, 0.03
NOTICE_POLL_S = 1.0
"""AWS recommends 5 s or less. What is left of a notice is for the checkpoint and what follows it."""
TELEMETRY_S = 5.0
DRAIN_S, FINAL_REPORT_S = 10.0, 5.0
SIGTERM_GRACE_S = 4.5  # an init waits 5 s from SIGTERM to SIGKILL
MAX_REJECTIONS = 3


def main(arguments: list[str]) -> int:
    """Run until the machine is no longer needed; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if arguments:
        log.error("the agent takes no arguments, only environment variables: see the head of its module")
        return os.EX_USAGE
    try:
        code = asyncio.run(run(os.environ))
    except AgentStartupError as error:
        log.error("%s", error)
        code = error.code
    finally:
        power_off(os.environ)
    return code


async def run(environment: Mapping[str, str]) -> int:
    """From boot to shutdown; returns the exit code. Raises AgentStartupError."""
    processes.become_subreaper()  # orphans of the ranks stay in this machine's tree
    folder = Path(environment.get("SHOESTRING_MACHINE_DIR") or Path.cwd()).resolve()
    metadata = MetadataClient(environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ENDPOINT)
    boot = await read_boot_data(environment, metadata)
    if (rank_user := find_rank_user(environment)) is not None:
        os.umask(UMASK)
    create_folders(folder, rank_user)
    session_secret = load_or_create_session_secret(folder)
    await terminate_ranks(str(boot.machine))  # of an agent that was killed
    service = ServiceClient(boot.server_url, boot.machine, session_secret, boot.ca)
    agent = Agent(folder, str(boot.machine), service, metadata, environment)
    try:
        agent.runner.start_rank_server()
        agent.funding.restore()
        request = RegisterRequest(
            machine=boot.machine, boot_token=boot.boot_token, session_secret=session_secret,
            address=await find_address(metadata), hardware=agent.machine_monitor.hardware(),
        )  # fmt: skip
        agent.reporter.apply_reply(await register(service, request))
        return await agent.run_until_shutdown()
    finally:
        agent.deadman.close()
        agent.runner.close()
        await service.close()
        await metadata.close()


class Agent:
    """A registered machine: connects its parts, and decides when it shuts down."""

    def __init__(
        self,
        folder: Path,
        machine: str,
        service: ServiceClient,
        metadata: MetadataClient,
        environment: Mapping[str, str],
    ) -> None:
        self.folder, self.metadata = folder, metadata
        self.machine_monitor = MachineMonitor(folder)
        self.deadman = DeadManSwitch({MACHINE_VARIABLE: machine})
        self.funding = FundingLease(folder / "funding", self.deadman)
        self.shutdown = Shutdown(self.funding)
        self.spool = Spool(folder / "spool", folder / "rejected")
        self.reporter = Reporter(
            service, self.spool, read_files=self.read_files, on_reply=self.apply_reply, on_rejected=self.count_rejection
        )
        self.runner = GenerationRunner(
            folder, machine, environment, metadata_endpoint=metadata.endpoint, service=service, spool=self.spool,
            output=RankOutputCollector(folder, self.spool), reporter=self.reporter, shutdown=self.shutdown,
        )  # fmt: skip
        self.rejections = 0

    async def run_until_shutdown(self) -> int:
        """Everything between registration and exit; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.on_sigterm)
        async with asyncio.TaskGroup() as group:
            self.runner.recover(group)
            executing = group.create_task(self.runner.execute_orders())
            others = [
                group.create_task(concern)
                for concern in (
                    self.reporter.run(),
                    self.reporter.poll_orders(),
                    self.read_files_continually(),
                    self.watch_preemption(),
                    self.watch_funding(),
                    self.sample_telemetry(),
                    self.runner.uploader.run(),
                )
            ]
            log.info("shutting down: %s", await self.shutdown.reason)
            executing.cancel()
            self.reporter.wake(urgent=True)
            await self.runner.end()
            self.reporter.wake(urgent=True)
            await self.shutdown.wait_until(lambda: self.reporter.is_up_to_date, boottime() + FINAL_REPORT_S)
            await self.shutdown.leave_to_provider()
            self.runner.stop_watching()
            for task in others:
                task.cancel()
        return self.shutdown.exit_code

    # --- the service

    def apply_reply(self, reply: TimedReply) -> None:
        self.rejections = 0
        self.runner.uploader.add_urls(reply.reply.upload_urls)
        self.funding.extend(reply.sent_at, reply.reply.funding_lease_s)
        self.shutdown.left_until = max(self.shutdown.left_until, reply.sent_at + reply.reply.left_for_s)
        self.receive_order(reply.reply.order)

    def receive_order(self, order: Order) -> None:
        if order.kind == "shutdown":
            reason = f"the service orders it ({order.reason or 'no reason given'})"
            self.shutdown.begin(reason, drain_by=boottime() + DRAIN_S)
        else:
            self.runner.receive_order(order)

    def count_rejection(self, rejection: RequestRejected) -> None:
        """Shut down after several in a row: one rejection of the session may be a proxy's."""
        log.warning("rejected: %s", rejection)
        self.rejections += 1
        if rejection.status in (401, 403) and self.rejections >= MAX_REJECTIONS:
            by = boottime() + DRAIN_S  # the service may still find what was uploaded
            self.shutdown.begin("the service no longer knows this machine", by=by, code=os.EX_NOPERM)

    # --- the machine

    async def read_files_continually(self) -> None:
        while True:
            self.read_files()
            if self.shutdown.has_begun or self.runner.order.kind == "drain":
                await asyncio.sleep(DRAINING_POLL_S)  # a checkpoint is expected, and perhaps the machine's end
            else:
                await asyncio.sleep(WATCHED_POLL_S if self.reporter.interval_s < 1 else POLL_S)

    def read_files(self) -> None:
        """Read what the ranks wrote; shut down if it can't be kept on this machine's disk."""
        self.runner.read_files()
        if (error := self.spool.write_error) and not self.shutdown.has_begun:
            self.spool.add_event("disk_write_failed", {"message": f"{error}; this machine shuts down"})
            self.shutdown.begin(f"the disk can't be written: {error}", code=os.EX_IOERR)

    async def sample_telemetry(self) -> None:
        """Measure the machine from its first generation on: the service stores points of generations only."""
        booted_at = boottime() - max(0.0, time.time() - (self.folder / "session").stat().st_mtime)
        while not self.spool.generation:
            await asyncio.sleep(POLL_S)
        while True:
            self.spool.add_points(int(boottime() - booted_at), time.time(), self.machine_monitor.sample())
            await asyncio.sleep(TELEMETRY_S)

    # --- reasons to shut down

    def on_sigterm(self) -> None:
        """The machine host writes to a file when it will send SIGKILL; other senders are assumed to wait 5 seconds."""
        left_s = SIGTERM_GRACE_S
        with suppress(OSError, ValueError, KeyError, TypeError):
            kill_at = json.loads((self.folder / "stop.json").read_text())["kill_at"]
            left_s = kill_at - boottime() - DEADMAN_RESERVE_S
        self.shutdown.begin("SIGTERM", by=boottime() + left_s)

    async def watch_preemption(self) -> None:
        """Poll for a preemption notice, and at times for the recommendation that says one is likely."""
        recommended = False
        polls = 0
        while True:
            with suppress(MetadataUnavailable):
                if (notice_at := await self.metadata.notice_at()) and self.reporter.notice_at is None:
                    self.reporter.notice_at = notice_at
                    self.spool.add_event("preemption_notice", {"notice_at": notice_at})
                    self.reporter.wake(urgent=True)
                    by = boottime() + notice_at - time.time() - DEADMAN_RESERVE_S
                    self.shutdown.begin("the provider preempts this machine", work_by=by)
                due = not recommended and polls % 5 == 0
                if due and (recommendation := await self.metadata.rebalance_recommendation()):
                    recommended = True
                    self.spool.add_event("rebalance", {"message": recommendation[:1000]})
            polls += 1
            await asyncio.sleep(NOTICE_POLL_S)

    async def watch_funding(self) -> None:
        """Shut down in time before the funding lease expires, whether or not the service answers."""
        while True:
            if self.funding.is_ending(self.runner.uploader.save_s):
                message = "the machine's funding lease expires: checkpoint and shut down"
                self.spool.add_event("funding_end", {"message": message})
                return self.shutdown.begin("the machine's funding lease expires")
            self.deadman.restart_if_dead()
            await asyncio.sleep(POLL_S)

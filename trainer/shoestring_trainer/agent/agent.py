# SPDX-License-Identifier: Apache-2.0
"""The agent of a rented machine: `python -m shoestring_trainer agent`, in the machine's folder.

It reads its user data, registers with its boot token, and then executes the service's orders until the machine is no
longer needed, preempted or out of funding. One asyncio task for each concern: reports, orders, files, the provider's
metadata, funding.

    SHOESTRING_MACHINE_DIR              where everything lies (the current folder if unset)
    AWS_EC2_METADATA_SERVICE_ENDPOINT   where the metadata service is, if not at EC2's address
    SHOESTRING_POWEROFF                 the only command that powers a machine off, run last; real user data sets it
    SHOESTRING_AGENT_AWS_…              AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and
                                        AWS_ENDPOINT_URL with this before them: to read data in S3 with
    SHOESTRING_AGENT_RANK_COMMAND       for tests: another launcher than torchrun, with the same arguments

Exit codes are those of sysexits.h: 0 left as it should, 73 and 74 the folder can't be written, 75 the service never
answered, 77 the service refuses this machine, 78 no usable user data.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from shoestring_core.wire import MemberStatus, Order, RankExit, RegisterRequest

from shoestring_trainer import processes
from shoestring_trainer.agent.deadman import DeadMan, power_off
from shoestring_trainer.agent.file_tailer import Event, Tails
from shoestring_trainer.agent.metadata_watch import ENDPOINT, Metadata, MetadataUnavailable
from shoestring_trainer.agent.ranks import KEYS_PREFIX, MARK, Ranks, end_ranks, free_port, server_environment
from shoestring_trainer.agent.service import Heard, Refused, Service, Unreachable, boottime, pauses
from shoestring_trainer.agent.spool import Spool, write_durably
from shoestring_trainer.agent.telemetry import Telemetry
from shoestring_trainer.agent.transfers import Cache, Checkpoint, Courier, Unfetchable
from shoestring_trainer.data_sync.datasets import NoData, bring, is_remote
from shoestring_trainer.rank_server.client import RankServer

log = logging.getLogger("shoestring.agent")

METADATA_PATIENCE_S, SERVICE_PATIENCE_S = 30.0, 600.0
WATCHED_POLL_S, LEAVING_POLL_S, POLL_S, LOOK_S = 0.1, 0.03, 0.2, 0.05
TELL_S = 0.05
"""A report is sent so much earlier than asked, so that a new line is stored within that time."""
QUIET_S, TELEMETRY_S = 5.0, 5.0
NOTICE_POLL_LOCAL_S, NOTICE_POLL_S = 1.0, 5.0
END_DRAIN_S, END_UPLOAD_S, END_FLUSH_S, TERMINATED_S = 10.0, 60.0, 5.0, 4.5  # an init waits 5 s from SIGTERM to SIGKILL
KILL_RESERVE_S, DEADMAN_RESERVE_S, FUND_STEP_S = 1.5, 0.5, 0.25
UPLOAD_PATIENCE_S = 5.0
REFUSALS = 3
PROGRESS = {"prepare": 1, "run": 2, "drain": 3}

RANK_SERVER_LOG = "rank-server.log"

T = TypeVar("T")


def main(arguments: list[str]) -> int:
    """Run until the machine is done with; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if arguments:
        log.error("the agent takes no arguments, only environment variables: see the head of its module")
        return os.EX_USAGE
    try:
        code = asyncio.run(run(os.environ))
    except CannotStart as reason:
        log.error("%s", reason)
        code = reason.code
    finally:
        power_off(os.environ)
    return code


class CannotStart(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


async def run(environment: Mapping[str, str]) -> int:
    """From boot to leaving. Raises CannotStart."""
    processes.become_subreaper()  # orphans of the ranks stay in this machine's tree
    folder = Path(environment.get("SHOESTRING_MACHINE_DIR") or Path.cwd()).resolve()
    metadata = Metadata(environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ENDPOINT)
    identity = await read_identity(metadata)
    try:
        session = prepare(folder)
    except OSError as error:
        raise CannotStart(
            os.EX_CANTCREAT, f"{folder} can't be written ({error.strerror}): this machine is of no use"
        ) from error
    await end_ranks(str(identity.machine))  # of an agent that was killed
    service = Service(identity.server_url, identity.machine, session)
    agent = Agent(folder, identity.machine, service, metadata, environment)
    try:
        agent.start_rank_server()
        agent.refund()
        agent.hear(await agent.register(identity.boot_token, session))
        return await agent.live()
    finally:
        agent.deadman.close()
        if agent.rank_server:
            agent.rank_server.close()
        await service.close()
        await metadata.close()


@dataclass(frozen=True)
class Identity:
    """Who this machine is, by its user data."""

    server_url: str
    machine: UUID
    boot_token: str


async def read_identity(metadata: Metadata) -> Identity:
    deadline = boottime() + METADATA_PATIENCE_S
    for pause in pauses(most_s=2.0):
        try:
            data = await metadata.user_data()
            return Identity(str(data["server_url"]), UUID(data["machine"]), str(data["boot_token"]))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise CannotStart(
                os.EX_CONFIG, f"the user data is not an agent's ({error!r}): launch through the service"
            ) from error
        except MetadataUnavailable as error:
            if boottime() + pause > deadline:
                raise CannotStart(os.EX_CONFIG, f"no user data after {METADATA_PATIENCE_S:.0f} s: {error}") from error
            await asyncio.sleep(pause)
    raise AssertionError


def prepare(folder: Path) -> str:
    """Make the folders; the session secret, which is made once and on the disk before anyone hears of it."""
    for name in ("spool", "rejected", "gen", "cache", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / "session"
    if not path.exists():
        write_durably(path, secrets.token_urlsafe(32))
    write_durably(folder / "probe", "")
    return path.read_text()


class Agent:
    """One machine's dealings with the service. `live` tells the story; the tasks below it each do one thing."""

    def __init__(
        self, folder: Path, machine: UUID, service: Service, metadata: Metadata, environment: Mapping[str, str]
    ) -> None:
        self.folder, self.machine, self.environment = folder, machine, environment
        self.service, self.metadata = service, metadata
        self.telemetry = Telemetry(folder)
        self.deadman = DeadMan({MARK: str(machine)})
        self.ranks_environment = server_environment(str(machine), environment)
        self.stand_in = environment.get("SHOESTRING_AGENT_RANK_COMMAND")
        self.rank_server = None if self.stand_in else RankServer(self.ranks_environment, folder / RANK_SERVER_LOG)
        self.spool = Spool(folder / "spool", folder / "rejected")
        self.tails = Tails(folder, self.spool)
        self.cache = Cache(folder / "cache")
        self.courier = Courier(service, self.spool, self.cache, lambda: self.stir(urgent=True))

        self.etag, self.report_interval_s = "", QUIET_S
        self.funded_until, self.longest_lease_s = 0.0, 0.0
        self.order = Order(kind="wait")
        self.ordered = asyncio.Event()
        self.stirred, self.urgent = asyncio.Event(), True
        self.member: MemberStatus | None = None
        self.member_told = True
        self.notice_at: float | None = None
        self.group: asyncio.TaskGroup
        self.ranks: Ranks | None = None
        self.watching: asyncio.Task[None] | None = None
        self.refusals = 0
        self.leaving: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.leave_by, self.drain_by, self.exit_code = float("inf"), float("inf"), 0

    async def register(self, boot_token: str, session: str) -> Heard:
        """Raises CannotStart when the service refuses this machine, or does not answer for ten minutes."""
        try:
            address = await self.metadata.address()
        except MetadataUnavailable:
            address = "127.0.0.1"
        word = RegisterRequest(
            machine=self.machine,
            boot_token=boot_token,
            session=session,
            address=address,
            hardware=self.telemetry.hardware(),
        )
        deadline = boottime() + SERVICE_PATIENCE_S
        for pause in pauses():
            try:
                return await self.service.register(word)
            except Refused as refusal:
                why = (
                    f"the service refuses this machine ({refusal}): its boot token is forged or used by another session"
                )
                raise CannotStart(os.EX_NOPERM, why) from refusal
            except Unreachable as error:
                log.warning("not registered yet: %s", error)
                if boottime() + pause > deadline:
                    raise CannotStart(
                        os.EX_TEMPFAIL, f"the service did not answer for {SERVICE_PATIENCE_S:.0f} s"
                    ) from error
                await asyncio.sleep(pause)
        raise AssertionError

    async def live(self) -> int:
        """From the registered session until this machine is not needed any more; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.terminate)
        async with asyncio.TaskGroup() as self.group:
            self.recover()
            obeying = self.group.create_task(self.obey_orders())
            others = [
                self.group.create_task(concern)
                for concern in (
                    self.report_for_ever(),
                    self.hear_orders(),
                    self.read_files(),
                    self.watch_provider(),
                    self.watch_money(),
                    self.measure(),
                    self.courier.run(),
                )
            ]
            log.info("leaving: %s", await self.leaving)
            obeying.cancel()
            await self.wind_up()
            for task in [*others, *([self.watching] if self.watching else [])]:
                task.cancel()
        return self.exit_code

    # --- what the service says

    def hear(self, heard: Heard) -> None:
        """Take in a reply. Replies may arrive in any order: money and numbers only grow, orders only move on."""
        reply = heard.reply
        self.refusals = 0
        self.etag, self.report_interval_s = reply.etag, reply.report_interval_s
        self.spool.acknowledge(reply.acked_seq)
        self.courier.hold(reply.upload_urls)
        self.longest_lease_s = max(self.longest_lease_s, reply.funding_lease_s)
        self.fund(heard.sent_at + reply.funding_lease_s)
        self.accept(reply.order)

    def fund(self, until: float) -> None:
        """The money's lease: it is kept on the disk too, for an agent that takes over when nobody answers."""
        if until > self.funded_until + FUND_STEP_S:  # less is the jitter of replies, not an extension
            self.funded_until = until
            self.deadman.set(until - DEADMAN_RESERVE_S)
            with suppress(OSError):
                (self.folder / "funding").write_text(json.dumps({"boot": processes.boot_id(), "until": until}))

    def refund(self) -> None:
        """What an agent before this one knew of the money."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads((self.folder / "funding").read_text())
            if known["boot"] == processes.boot_id():
                self.fund(float(known["until"]))

    def accept(self, order: Order) -> None:
        if order.kind == "shutdown":
            self.drain_by = min(self.drain_by, boottime() + END_DRAIN_S)
            self.leave(f"the service says so ({order.reason or 'no reason given'})")
        elif (order.generation, PROGRESS.get(order.kind, 0)) > (
            self.order.generation,
            PROGRESS.get(self.order.kind, 0),
        ):
            self.order = order
            self.ordered.set()

    def refused(self, refusal: Refused) -> None:
        """One refusal of the session may be a proxy's mood; several in a row are the service's word."""
        log.warning("refused: %s", refusal)
        self.refusals += 1
        if refusal.status in (401, 403) and self.refusals >= REFUSALS:
            by = boottime() + END_DRAIN_S  # it may still find what was uploaded
            self.leave("the service does not know this machine any more", by, os.EX_NOPERM)

    async def hear_orders(self) -> None:
        waits = pauses()
        while True:
            try:
                self.hear(await self.service.orders(self.etag))
                waits = pauses()
            except Unreachable:
                await asyncio.sleep(next(waits))
            except Refused as refusal:
                self.refused(refusal)
                await asyncio.sleep(next(waits))

    # --- what the service is told

    def tell(self, member: MemberStatus) -> None:
        log.info(
            "generation %d: %s %s", member.generation, member.state, [(e.rank, e.outcome) for e in member.exits] or ""
        )
        self.member, self.member_told = member, False
        self.stir(urgent=True)

    def stir(self, *, urgent: bool = False) -> None:
        """There is something to report; `urgent` reports at once."""
        self.urgent |= urgent
        self.stirred.set()

    async def report_for_ever(self) -> None:
        """At once when urgent, every `report_interval_s` with news, every QUIET_S without: it is the heartbeat."""
        waits, last, failing = pauses(), -QUIET_S, False
        while True:
            news = self.spool.waiting or self.spool.stirring
            due = last + (self.report_interval_s - TELL_S if news else max(QUIET_S, self.report_interval_s))
            if not self.urgent and (left := due - boottime()) > 0:
                self.stirred.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self.stirred.wait()
                continue
            self.read_now()
            if self.spool.waiting == 0 or boottime() - last >= QUIET_S:
                self.spool.seal()
            self.urgent, last = False, boottime()
            try:
                await self.report()
            except Unreachable as error:
                if not failing:
                    log.warning("the service can't be reached, training goes on: %s", error)
                failing, self.urgent = True, True
                await asyncio.sleep(next(waits))
                continue
            if failing:
                log.info("the service answers again, %d batches to catch up", self.spool.waiting)
            waits, failing = pauses(), False
            self.urgent |= self.spool.waiting > 0

    async def report(self) -> None:
        """One report: the oldest batch, and what this machine's part is if that is news. Raises Unreachable."""
        batch = self.spool.first()
        member = None if self.member_told else self.member
        try:
            heard = await self.service.report(batch, member, self.notice_at)
        except Refused as refusal:
            return self.amend(refusal, batch, member)
        if member is self.member:
            self.member_told = True
        self.hear(heard)
        if batch and heard.reply.acked_seq < batch["seq"]:
            raise Unreachable(f"batch {batch['seq']} was answered, but not stored")

    def amend(self, refusal: Refused, batch: dict[str, Any] | None, member: MemberStatus | None) -> None:
        """Make the next report one that the service takes. Raises Unreachable if only time can tell."""
        if refusal.code == "batch-gap" and refusal.expected:
            log.warning("the service expects batch %d next", refusal.expected)
            self.spool.expect(refusal.expected)
        elif refusal.status in (400, 413, 422) and batch and self.spool.reject(batch["seq"], str(refusal)):
            log.error("batch %d was refused and lies in rejected/: %s", batch["seq"], refusal)
        elif refusal.status not in (401, 403) and member is self.member and not self.member_told:
            log.error("%s was refused: %s", member, refusal)
            self.member_told = True
        else:
            self.refused(refusal)
            raise Unreachable(str(refusal))
        self.urgent = True

    # --- what it is ordered

    async def obey_orders(self) -> None:
        while True:
            await self.ordered.wait()
            self.ordered.clear()
            order = self.order
            log.info("generation %d: ordered to %s %s", order.generation, order.kind, order.reason)
            if order.kind == "prepare":
                await self.form(order.generation)
            elif order.kind == "run":
                await self.start(order)
            else:
                self.drain(order.generation)

    async def form(self, generation: int) -> None:
        """Ready is said only when no process of an older generation lives."""
        if self.watching:
            self.watching.cancel()
        self.courier.forget(generation)
        await end_ranks(str(self.machine), self.rank_server)
        self.start_rank_server()
        self.read_now(to_the_end=True)
        self.tell(MemberStatus(generation=generation, state="ready", port=free_port()))

    async def start(self, order: Order) -> None:
        """Start the ranks of a generation, once, however often it is ordered and by however many agents."""
        if order.run is None:
            return log.error("an order to run without saying what: %s", order)
        ranks = Ranks(self.folder / "gen" / str(order.generation), order.generation, order.run)
        if ranks.started:
            return None  # `recover` found them and tells how they ended
        try:
            task = await self.unless_ordered(self.task(order))
            if task is None:
                return None
            self.read_now(to_the_end=True)
            self.spool.begin(ranks.generation)
            self.tails.follow(ranks.folder, ranks.numbers)
            ranks.start(task, self.ranks_environment, self.rank_server, self.stand_in)
        except Unfetchable as error:
            if order.run.init:  # another job's, which its user chose: trying again doesn't bring it back
                return self.tell(_failed(ranks, f"init: {error}; name other weights and submit again", "data"))
            return self.tell(_failed(ranks, f"the ranks can't be started: {error}"))
        except NoData as error:
            return self.tell(_failed(ranks, str(error), "data" if error.lasting else "infrastructure"))
        except OSError as error:
            return self.tell(_failed(ranks, f"the ranks can't be started: {error}"))
        self.ranks = ranks
        self.tell(MemberStatus(generation=ranks.generation, state="running"))
        self.watching = self.group.create_task(self.watch(ranks))

    def start_rank_server(self) -> None:
        """Start the rank server unless it runs, so that it has imported the training loop when an order comes."""
        if self.rank_server:
            with suppress(OSError):  # the ranks try again, and say why it can't be started
                self.rank_server.start()

    async def task(self, order: Order) -> dict[str, Any]:
        """What task.json holds: the order's task, with the files that it starts from. Raises Unfetchable, NoData."""
        run = order.run
        assert run
        scratch = self.folder / "scratch"
        task = {**run.task, "generation": order.generation, "resume": None, "scratch": str(scratch)}
        for name, checkpoint in (("resume", run.resume), ("init", run.init)):
            if checkpoint:
                data, manifest = await self.cache.fetch(self.service, checkpoint)
                task[name] = {"data": str(data), "manifest": str(manifest)}
        if (place := task.get("data")) and is_remote(place["train"]):
            keys = self.bucket_environment()
            here = await bring(place["train"], scratch, keys, self.tell_of_data, log.info)
            task["data"] = {**place, "train": str(here)}
        return task

    def tell_of_data(self, news: str) -> None:
        log.info(news)
        self.spool.event("data", {"message": news})
        self.stir()

    def bucket_environment(self) -> dict[str, str]:
        """What this machine may read buckets with: its own keys, else its role, which the metadata service knows."""
        given = {name.removeprefix(KEYS_PREFIX): value for name, value in self.environment.items()}
        return {**given, "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.endpoint}

    async def unless_ordered(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`; None if another order came first."""
        working, news = asyncio.create_task(work), asyncio.create_task(self.ordered.wait())
        try:
            await asyncio.wait({working, news}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            news.cancel()

    def drain(self, generation: int) -> None:
        if self.ranks and self.ranks.generation == generation:
            if not self.ranks.over:
                self.ranks.drain()
        else:
            self.tell(MemberStatus(generation=generation, state="exited"))  # nothing was started, and nothing will be

    async def watch(self, ranks: Ranks) -> None:
        """Follow the ranks to their end and tell it, a clean end only after its checkpoint is committed."""
        await ranks.wait()
        await end_ranks(str(self.machine), self.rank_server, grace_s=0)
        self.read_now(to_the_end=True)
        ranks.over = True
        exits = ranks.exits()
        if self.spool.fault:
            return self.tell(_failed(ranks, f"the machine's disk can't be written: {self.spool.fault}"))
        clean = all(each.outcome in ("drained", "finished") for each in exits)
        patience = float("inf") if clean else boottime() + UPLOAD_PATIENCE_S
        if await self.until(lambda: self.courier.idle, patience) or not clean:
            self.tell(MemberStatus(generation=ranks.generation, state="exited", exits=exits))

    def recover(self) -> None:
        """Take over from an agent that was killed: its ranks are gone with it, what they left is told."""
        found = Ranks.found(self.folder / "gen")
        if not found:
            return
        log.info("taking over after generation %d", found.generation)
        self.ranks = found
        if self.spool.generation != found.generation:
            self.spool.begin(found.generation)
        self.tails.follow(found.folder, found.numbers)
        self.read_now(to_the_end=True)
        for event in self.tails.events_again():
            if event.name == "checkpoint":
                self.take(event)
        self.watching = self.group.create_task(self.watch(found))

    # --- what the ranks say

    async def read_files(self) -> None:
        while True:
            self.read_now()
            if self.leaving.done() or self.order.kind == "drain":
                await asyncio.sleep(LEAVING_POLL_S)  # a checkpoint is awaited, and perhaps the machine's end
            else:
                await asyncio.sleep(WATCHED_POLL_S if self.report_interval_s < 1 else POLL_S)

    def read_now(self, *, to_the_end: bool = False) -> None:
        for event in self.tails.read(to_the_end=to_the_end):
            self.take(event)
        if self.spool.stirring:
            self.stir()
        if self.spool.fault and not self.leaving.done():
            self.spool.event("disk_full", {"message": f"{self.spool.fault}; this machine leaves"})
            self.leave(f"the disk can't be written: {self.spool.fault}", code=os.EX_IOERR)

    def take(self, event: Event) -> None:
        if event.name != "checkpoint":
            step = event.facts.pop("step", None)
            step = step if isinstance(step, int) and 0 <= step <= 2**62 else None
            return self.spool.event(event.name, event.facts, step=step, at=event.at)
        folder, facts = self.folder / "gen" / str(self.spool.generation), event.facts
        try:
            checkpoint = Checkpoint(
                generation=self.spool.generation,
                step=int(facts["step"]),
                data=folder / facts["data"],
                manifest=folder / facts["manifest"],
                reason="final" if facts.get("final") else facts["reason"],
                through_seq=self.spool.seal(),  # each point up to it was read before the event was handed out
                result=facts.get("result"),
            )
        except (KeyError, TypeError, ValueError) as error:
            return self.spool.event("warning", {"message": f"a checkpoint event can't be read: {error!r}"})
        if checkpoint.data.exists() and checkpoint.manifest.exists():  # else it was committed before
            self.courier.offer(checkpoint)
            self.stir(urgent=True)

    # --- what ends it

    def leave(self, reason: str, by: float = float("inf"), code: int = 0) -> None:
        """Begin to leave, for the first reason; every reason can make it more urgent."""
        self.leave_by = min(self.leave_by, by)
        if not self.leaving.done():
            self.exit_code = code
            self.leaving.set_result(reason)

    def terminate(self) -> None:
        """The machine host says in a file when it kills; anybody else is taken to wait the usual five seconds."""
        left_s = TERMINATED_S
        with suppress(OSError, ValueError, KeyError, TypeError):
            left_s = (
                json.loads((self.folder / "stop.json").read_text())["kill_at"] / 1e6 - time.time() - DEADMAN_RESERVE_S
            )
        self.leave("terminated", boottime() + left_s)

    async def watch_provider(self) -> None:
        """Look for a spot notice, and now and then for the word that one has become likelier."""
        rebalance = False
        looks = 0
        while True:
            with suppress(MetadataUnavailable):
                if (notice_at := await self.metadata.notice_at()) and self.notice_at is None:
                    self.notice_at = notice_at
                    self.spool.event("notice", {"notice_at": notice_at})
                    self.stir(urgent=True)
                    self.leave(
                        "the provider takes this machine", boottime() + notice_at - time.time() - DEADMAN_RESERVE_S
                    )
                if not rebalance and looks % 5 == 0 and (word := await self.metadata.rebalance()):
                    rebalance = True
                    self.spool.event("rebalance", {"message": word[:1000]})
            looks += 1
            await asyncio.sleep(NOTICE_POLL_LOCAL_S if self.metadata.local else NOTICE_POLL_S)

    async def watch_money(self) -> None:
        """Leave early enough before the funding ends, whether or not anybody answers."""
        while True:
            margin = min(60.0, max(2.0, self.longest_lease_s / 4))
            if boottime() >= self.funded_until - margin:
                self.spool.event("funding_end", {"message": "the machine's funding ends: checkpoint and leave"})
                return self.leave("the machine's funding ends")
            self.deadman.check()
            await asyncio.sleep(POLL_S)

    async def wind_up(self) -> None:
        """Drain, upload, commit, report: as much of it as there is time for. No rank is left when it returns."""
        self.stir(urgent=True)
        if self.ranks and self.watching and not self.watching.done():
            ranks = self.ranks
            if not ranks.over and not self.spool.fault:
                with suppress(OSError):
                    ranks.drain()
                await self.until(lambda: ranks.over or boottime() >= self.drain_by, reserve_s=KILL_RESERVE_S)
            if not ranks.over:
                await end_ranks(str(self.machine))
            await self.until(self.watching.done, boottime() + END_UPLOAD_S)
        elif self.order.generation and not (self.ranks and self.ranks.generation == self.order.generation):
            self.tell(MemberStatus(generation=self.order.generation, state="exited"))
        await end_ranks(str(self.machine))
        self.read_now(to_the_end=True)
        self.stir(urgent=True)
        await self.until(
            lambda: self.member_told and not self.spool.waiting and not self.spool.stirring, boottime() + END_FLUSH_S
        )

    async def until(self, condition: Callable[[], bool], by: float = float("inf"), *, reserve_s: float = 0.0) -> bool:
        """Wait for a condition, at most until `by` and until this machine must have left; False if it didn't come."""
        while not condition():
            if boottime() >= min(by, self.leave_by, self.funded_until - 2 * DEADMAN_RESERVE_S) - reserve_s:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    async def measure(self) -> None:
        """Measure the machine from its first generation on: the service takes points of generations only."""
        started = (self.folder / "session").stat().st_mtime
        while not self.spool.generation:
            await asyncio.sleep(POLL_S)
        while True:
            now = time.time()
            self.spool.points(max(0, int(now - started)), now, self.telemetry.sample())
            await asyncio.sleep(TELEMETRY_S)


def _failed(ranks: Ranks, why: str, kind: str = "infrastructure") -> MemberStatus:
    """The end of ranks that this machine could not run."""
    exits = [
        RankExit(rank=rank, outcome="error", at=time.time(), kind=kind, message=why[:2000]) for rank in ranks.numbers
    ]
    return MemberStatus(generation=ranks.generation, state="exited", exits=exits)

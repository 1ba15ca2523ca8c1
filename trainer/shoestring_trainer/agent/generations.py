# SPDX-License-Identifier: Apache-2.0
"""Executes orders: prepares generations, starts and drains their ranks, reads what they write, reports their ends."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from shoestring_core.task import CheckpointFiles, Task, TaskData
from shoestring_core.wire import MemberStatus, Order, RankExit

from shoestring_trainer.agent.checkpoints import (
    CheckpointCache,
    CheckpointUnavailable,
    CheckpointUploader,
    LocalCheckpoint,
)
from shoestring_trainer.agent.rank_files import exists
from shoestring_trainer.agent.rank_output import RANK_SERVER_LOG, RankEvent, RankOutputCollector
from shoestring_trainer.agent.rank_user import find_rank_user, give_to_ranks
from shoestring_trainer.agent.ranks import (
    CREDENTIALS_PREFIX,
    Ranks,
    free_port,
    rank_server_environment,
    terminate_ranks,
)
from shoestring_trainer.agent.reporter import Reporter
from shoestring_trainer.agent.service_client import ServiceClient, boottime
from shoestring_trainer.agent.shutdown import Shutdown
from shoestring_trainer.agent.spool import Spool
from shoestring_trainer.data_sync.datasets import is_remote, sync_dataset
from shoestring_trainer.data_sync.errors import DataUnavailable
from shoestring_trainer.rank_server.bubblewrap import isolated_environment
from shoestring_trainer.rank_server.client import RankServerClient
from shoestring_trainer.rank_server.isolation import (
    DATA_ROOTS_VARIABLE,
    HOOKS_ROOTS_VARIABLE,
    ISOLATION_VARIABLE,
    Isolation,
)
from shoestring_trainer.run_files import CheckpointEvent, printable

log = logging.getLogger("shoestring.agent")

UPLOAD_WAIT_S, FAILED_UPLOAD_WAIT_S = 60.0, 5.0
KILL_RESERVE_S = 1.5
ORDER_OF_KINDS = {"prepare": 1, "run": 2, "drain": 3}

T = TypeVar("T")


class GenerationRunner:
    """The generations of one machine, of which at most one runs.

    metadata_endpoint  of the service that hands out the machine's role, with which data may be read
    """

    def __init__(
        self,
        folder: Path,
        machine: str,
        environment: Mapping[str, str],
        *,
        metadata_endpoint: str,
        service: ServiceClient,
        spool: Spool,
        output: RankOutputCollector,
        reporter: Reporter,
        shutdown: Shutdown,
    ) -> None:
        self.order = Order(kind="wait")
        self.ranks: Ranks | None = None
        self._group: asyncio.TaskGroup
        self._watcher: asyncio.Task[None] | None = None
        self._new_order = asyncio.Event()
        self._folder, self._machine = folder, machine
        self._service, self._spool, self._output = service, spool, output
        self._reporter, self._shutdown = reporter, shutdown
        self._cache = CheckpointCache(folder / "cache")
        self.uploader = CheckpointUploader(service, spool, self._cache, lambda: reporter.wake(urgent=True))

        credentials = {name.removeprefix(CREDENTIALS_PREFIX): value for name, value in environment.items()}
        self._bucket_environment = {**credentials, "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata_endpoint}
        self._isolation = Isolation.parse(environment.get(ISOLATION_VARIABLE))
        self._rank_environment = rank_server_environment(machine, environment)
        if roots := environment.get(DATA_ROOTS_VARIABLE):  # links in a job's data lead to places below these only
            self._rank_environment[DATA_ROOTS_VARIABLE] = os.pathsep.join((roots, str(folder / "scratch")))
        self._rank_environment[HOOKS_ROOTS_VARIABLE] = ""  # none: no hooks
        if self._isolation:
            self._rank_environment[HOOKS_ROOTS_VARIABLE] = environment.get(HOOKS_ROOTS_VARIABLE, "")
        self._rank_user = find_rank_user(environment)
        if self._isolation or self._rank_user is not None:
            self._rank_environment = isolated_environment(self._rank_environment)
        self._rank_command = environment.get("SHOESTRING_AGENT_RANK_COMMAND")
        self._streaming: asyncio.Task[None] | None = None
        self._rank_server = None
        if not self._rank_command:
            isolation = self._isolation.wrap(folder, environment)
            group = environment.get("SHOESTRING_RANK_GROUP")
            self._rank_server = RankServerClient(
                self._rank_environment, folder / RANK_SERVER_LOG, isolation=isolation,
                group=int(group) if group else None, user=self._rank_user,
            )  # fmt: skip

    # --- orders

    def receive_order(self, order: Order) -> None:
        """Note an order; older ones than the current, which late replies bring, are ignored."""
        if _age(order) > _age(self.order):
            self.order = order
            self._new_order.set()

    async def execute_orders(self) -> None:
        """Execute each new order; never returns."""
        while True:
            await self._new_order.wait()
            self._new_order.clear()
            order = self.order
            log.info("generation %d: ordered to %s %s", order.generation, order.kind, order.reason)
            if order.kind == "prepare":
                await self._prepare(order.generation)
            elif order.kind == "run":
                await self._start(order)
            else:
                self._drain(order.generation)

    async def _prepare(self, generation: int) -> None:
        """Report `ready` once no process of an older generation is left."""
        if self._watcher:
            self._watcher.cancel()
        self.uploader.discard_before(generation)
        await terminate_ranks(self._machine, self._rank_server)
        self.start_rank_server()
        self.read_files(to_the_end=True)
        self._reporter.set_status(MemberStatus(generation=generation, state="ready", port=free_port()))

    async def _start(self, order: Order) -> None:
        """Start the ranks of a generation, once, however often it is ordered and by however many agents."""
        if order.run is None:
            return log.error("an order to run without a launch configuration: %s", order)
        ranks = Ranks(self._folder, order.generation, order.run)
        if ranks.started:
            return None  # `recover` found them and reports how they ended
        if order.run.task.params.get("hooks_file") and not self._isolation:
            return self._report_failure(ranks, self._isolation.hooks_refusal(), "user_code")
        try:
            task = await self._unless_new_order(self._build_task(order))
            if task is None:
                return None
            self.read_files(to_the_end=True)
            self._spool.begin_generation(ranks.generation)
            self._output.follow(ranks.folder, ranks.numbers)
            ranks.start(task, self._rank_environment, self._rank_server, self._rank_command, self._rank_user)
        except CheckpointUnavailable as error:
            if order.run.init:  # another job's, which the user chose: no retry brings it back
                return self._report_failure(ranks, f"init: {error}; name other weights and submit again", "data")
            return self._report_failure(ranks, f"the ranks can't be started: {error}")
        except DataUnavailable as error:
            return self._report_failure(ranks, str(error), "data" if error.permanent else "infrastructure")
        except OSError as error:
            return self._report_failure(ranks, f"the ranks can't be started: {error}")
        self.ranks = ranks
        self._reporter.set_status(MemberStatus(generation=ranks.generation, state="running"))
        self._watcher = self._group.create_task(self._watch(ranks))

    def _drain(self, generation: int) -> None:
        if self.ranks and self.ranks.generation == generation:
            if not self.ranks.ended:
                self.ranks.drain()
        else:  # nothing was started, and nothing will be
            self._reporter.set_status(MemberStatus(generation=generation, state="exited"))

    async def _unless_new_order(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`; None if another order came first."""
        working, ordered = asyncio.create_task(work), asyncio.create_task(self._new_order.wait())
        try:
            await asyncio.wait({working, ordered}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            ordered.cancel()

    # --- what ranks start from

    def start_rank_server(self) -> None:
        """Start the rank server unless it runs, so that it has imported the training loop when an order comes."""
        if self._rank_server:
            with suppress(OSError):  # the ranks try again, and report why it can't be started
                self._rank_server.start()

    async def _build_task(self, order: Order) -> Task:
        """The content of task.json: the order's task, with local paths of the files that it starts from.

        Raises CheckpointUnavailable and DataUnavailable.
        """
        run = order.run
        assert run
        scratch = self._folder / "scratch"
        local: dict[str, Any] = {"generation": order.generation, "resume": None, "scratch": scratch / "ranks"}
        for name, checkpoint in (("resume", run.resume), ("init", run.init)):
            if checkpoint:
                local[name] = CheckpointFiles(*await self._cache.fetch(self._service, checkpoint))
        if (data := run.task.data) and is_remote(data.train):
            files: dict[str, Any] = {"source": data.train}
            if data.stream:
                files |= await self._open_stream(data, scratch)
            else:
                path = await sync_dataset(
                    data.train, scratch, self._bucket_environment, self._report_data_progress, log.info
                )
                files["train"] = str(path)
            local["data"] = data.model_copy(update=files)
        return run.task.model_copy(update=local)

    async def _open_stream(self, data: TaskData, scratch: Path) -> dict[str, Any]:
        """Begin to serve the ranks with the shards that they ask for; return the paths for their task."""
        from shoestring_trainer.data_sync.shard_streamer import ShardStreamer, open_stream  # it imports the S3 library

        await self._end_stream()
        stream = await open_stream(
            data.train, scratch, self._bucket_environment, self._report_data_progress, cache_bytes=data.cache_bytes,
            requests=scratch / "ranks",
        )  # fmt: skip
        if self._rank_user is not None:
            give_to_ranks(stream.requests, self._rank_user)
        self._streaming = asyncio.create_task(ShardStreamer(stream, self._report_data_progress).run())
        return {"train": str(stream.folder), "requests": str(stream.requests)}

    async def _end_stream(self) -> None:
        if self._streaming:
            self._streaming.cancel()
            await asyncio.wait({self._streaming})
            self._streaming = None

    def _report_data_progress(self, message: str) -> None:
        log.info(message)
        self._spool.add_event("data", {"message": message})
        self._reporter.wake()

    # --- running ranks

    def recover(self, group: asyncio.TaskGroup) -> None:
        """Take over from an agent that was killed: its ranks died with it, and what they left is reported.

        Must be called before anything else; what watches ranks runs in `group`.
        """
        self._group = group
        ranks = Ranks.latest_started(self._folder)
        if not ranks:
            return
        log.info("taking over after generation %d", ranks.generation)
        self.ranks = ranks
        if self._spool.generation != ranks.generation:
            self._spool.begin_generation(ranks.generation)
        self._output.follow(ranks.folder, ranks.numbers)
        self.read_files(to_the_end=True)
        for event in self._output.all_events():
            if event.name == "checkpoint":
                self._handle_event(event)
        self._watcher = self._group.create_task(self._watch(ranks))

    def read_files(self, *, to_the_end: bool = False) -> None:
        """Move what the ranks have written into the spool, and hand checkpoints to the uploader."""
        for event in self._output.read(to_the_end=to_the_end):
            self._handle_event(event)
        if self._spool.has_draft:
            self._reporter.wake()

    def _handle_event(self, event: RankEvent) -> None:
        if event.name != "checkpoint":
            step = event.data.pop("step", None)
            step = step if type(step) is int and 0 <= step <= 2**62 else None
            return self._spool.add_event(event.name, event.data, step=step, at=event.at)
        folder = self._folder / "gen" / str(self._spool.generation)
        try:
            saved = CheckpointEvent.model_validate(event.data)
        except ValidationError as error:
            return self._output.warn(f"a checkpoint event can't be read: {error}")
        checkpoint = LocalCheckpoint(
            generation=self._spool.generation,
            step=saved.step,
            data=folder / saved.data,
            manifest=folder / saved.manifest,
            reason=saved.reason,
            through_seq=self._spool.seal(),  # each point up to it was read before this event
            result=saved.result,
            write_s=None if saved.seconds is None else saved.stop_s + saved.seconds,
        )
        if exists(checkpoint.data) and exists(checkpoint.manifest):  # else it was committed before
            self.uploader.submit(checkpoint)
            self._reporter.wake(urgent=True)

    async def _watch(self, ranks: Ranks) -> None:
        """Wait for the ranks' end and report it, a clean end only after its checkpoint is committed."""
        await ranks.wait()
        await terminate_ranks(self._machine, self._rank_server, grace_s=0)
        await self._end_stream()
        self.read_files(to_the_end=True)
        ranks.ended = True
        exits = ranks.exits()
        if self._spool.write_error:
            return self._report_failure(ranks, f"the machine's disk can't be written: {self._spool.write_error}")
        clean = all(each.outcome in ("drained", "finished") for each in exits)
        deadline = float("inf") if clean else boottime() + FAILED_UPLOAD_WAIT_S
        committed = await self._shutdown.wait_until(lambda: self.uploader.idle, deadline)
        if committed or not clean:
            self._reporter.set_status(MemberStatus(generation=ranks.generation, state="exited", exits=exits))

    def _report_failure(self, ranks: Ranks, message: str, kind: str = "infrastructure") -> None:
        """Report the end of ranks that this machine could not run."""
        exits = [
            RankExit(rank=rank, outcome="error", at=time.time(), kind=kind, message=printable(message[:2000]))
            for rank in ranks.numbers
        ]
        self._reporter.set_status(MemberStatus(generation=ranks.generation, state="exited", exits=exits))

    # --- the end

    async def end(self) -> None:
        """Drain the ranks and commit their checkpoint, as far as there is time. No rank is left when it returns."""
        if self.ranks and self._watcher and not self._watcher.done():
            ranks, watcher = self.ranks, self._watcher
            if not ranks.ended and not self._spool.write_error:
                with suppress(OSError):
                    ranks.drain()
                await self._shutdown.wait_until(lambda: ranks.ended, self._shutdown.drain_deadline, KILL_RESERVE_S)
            if not ranks.ended:
                await terminate_ranks(self._machine)
            patience_s = float("inf") if self._shutdown.has_deadline else max(UPLOAD_WAIT_S, self.uploader.save_s)
            await self._shutdown.wait_until(watcher.done, boottime() + patience_s)
        elif self.order.generation and not (self.ranks and self.ranks.generation == self.order.generation):
            self._reporter.set_status(MemberStatus(generation=self.order.generation, state="exited"))
        await terminate_ranks(self._machine)
        self.read_files(to_the_end=True)

    def stop_watching(self) -> None:
        if self._watcher:
            self._watcher.cancel()
        if self._streaming:
            self._streaming.cancel()

    def close(self) -> None:
        """End the rank server."""
        if self._rank_server:
            self._rank_server.close()


def _age(order: Order) -> tuple[int, int]:
    return order.generation, ORDER_OF_KINDS.get(order.kind, 0)

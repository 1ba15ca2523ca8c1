# SPDX-License-Identifier: Apache-2.0
"""The training processes of one generation on this machine: start, drain, wait, terminate, report."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from pydantic import BaseModel
from shoestring_core.task import Task
from shoestring_core.wire import LaunchConfig, RankExit

from shoestring_trainer import processes
from shoestring_trainer.agent.launch_env import (
    SHARED_VARIABLE,
    distributed_environment,
    rank_environment,
    torchrun_command,
)
from shoestring_trainer.agent.rank_files import exists, read_file, write_file
from shoestring_trainer.agent.rank_user import give_to_ranks
from shoestring_trainer.agent.spool import write_durably
from shoestring_trainer.folders import delete_folder
from shoestring_trainer.rank_server.client import RankProcess, RankServerClient
from shoestring_trainer.rank_server.isolation import ISOLATION_VARIABLE, PRIVATE_VARIABLE
from shoestring_trainer.run_files import ExitFile, RankError

MACHINE_VARIABLE = "SHOESTRING_RANK_MACHINE"
"""The variable that identifies every rank and all that it starts, whatever their session."""
REMOVED_VARIABLES = (
    "AWS_EC2_METADATA_SERVICE_ENDPOINT", "SHOESTRING_POWEROFF", "SHOESTRING_AGENT_RANK_COMMAND", ISOLATION_VARIABLE,
    PRIVATE_VARIABLE,
)  # fmt: skip
CREDENTIALS_PREFIX = "SHOESTRING_AGENT_"
"""Prefix of the AWS variables with which machines of the local cloud read buckets. Ranks don't inherit them."""
START_FILE, LAUNCH_LOG = "started.json", "log-launch.txt"
"""The first lies in the machine's folder, where ranks can't write: they could make up a generation."""
GRACE_S, KILL_TIMEOUT_S, STRAGGLER_TIMEOUT_S, POLL_INTERVAL_S = 1.0, 10.0, 10.0, 0.05
STOP_ORDER = {"order": "checkpoint_and_stop"}
TRACEBACK_LIMIT, MAX_EXIT_BYTES = 16_000, 4 << 20


class StartRecord(BaseModel):
    """The content of started.json: the generation whose ranks were started last."""

    generation: int
    launch_config: LaunchConfig


class Ranks:
    """The ranks of `generation` on the machine in the folder `machine`, started or not."""

    def __init__(self, machine: Path, generation: int, launch_config: LaunchConfig) -> None:
        self.folder, self.generation, self.launch_config = machine / "gen" / str(generation), generation, launch_config
        self._machine = machine
        first = launch_config.node_rank * launch_config.nproc_per_node
        self.numbers = list(range(first, first + launch_config.nproc_per_node))
        self.ended = False
        self._processes: dict[int, RankProcess | subprocess.Popen[bytes]] = {}

    @property
    def started(self) -> bool:
        """Whether this agent or an earlier one has started them. They are never started twice."""
        latest = self.latest_started(self._machine)
        return latest is not None and latest.generation >= self.generation

    @classmethod
    def latest_started(cls, machine: Path) -> Ranks | None:
        """The latest that were started here, for an agent that recovers after an earlier one was killed."""
        try:
            record = StartRecord.model_validate_json((machine / START_FILE).read_text())
        except FileNotFoundError:
            return None
        return cls(machine, record.generation, record.launch_config)

    def start(
        self,
        task: Task,
        environment: Mapping[str, str],
        server: RankServerClient | None,
        rank_command: str | None = None,
        user: int | None = None,
    ) -> None:
        """Start the ranks by the rank server or, in tests of the agent alone, by the command `rank_command`.

        environment  that of the server; the variables that depend on the generation are added
        user         that the server's ranks are; None: the agent's
        raises       OSError if the folder can't be written or a process can't be started
        """
        self._create_folder()
        task_file, log = self.folder / "task.json", self.folder / LAUNCH_LOG
        task_file.write_text(task.model_dump_json())
        record = StartRecord(generation=self.generation, launch_config=self.launch_config)
        write_durably(self._machine / START_FILE, record.model_dump_json())
        log.touch()
        if user is not None:
            give_to_ranks(log, user)
            give_to_ranks(self.folder, user)
        ranks_environment = {**environment, **self._generation_environment(SHARED_VARIABLE in environment)}
        if server is None:
            launcher = self._start_rank_command(shlex.split(rank_command or ""), task_file, ranks_environment, log)
            self._processes = dict.fromkeys(self.numbers, launcher)
            return
        for local_rank, rank in enumerate(self.numbers):
            distributed = distributed_environment(
                nodes=self.launch_config.nnodes, node_rank=self.launch_config.node_rank, local_rank=local_rank,
                procs_per_node=self.launch_config.nproc_per_node, master_addr=self.launch_config.master_addr,
                master_port=self.launch_config.master_port,
            )  # fmt: skip
            self._processes[rank] = server.start_rank(
                [str(task_file)], environment=ranks_environment | distributed, folder=self.folder, log=log
            )

    def drain(self) -> None:
        """Request a checkpoint and stop; all ranks of the gang agree on the step."""
        write_file(self.folder / "order", json.dumps(STOP_ORDER))

    async def wait(self) -> None:
        """Return when each rank has written its exit file or its process has exited.

        A rank that still runs long after another has ended hangs in a collective call: it is not waited for.
        """
        first_end = float("inf")
        while self._processes:
            ended = sum(self._has_ended(rank) for rank in self.numbers)
            if ended:
                first_end = min(first_end, time.monotonic())
            if ended == len(self.numbers) or time.monotonic() > first_end + STRAGGLER_TIMEOUT_S:
                return
            await asyncio.sleep(POLL_INTERVAL_S)

    def exits(self) -> list[RankExit]:
        """How each rank ended, by its exit file. A rank without one was killed by a signal, or never started."""
        return [_read_exit(self._exit_file(rank), rank) or self._exit_without_file(rank) for rank in self.numbers]

    def _create_folder(self) -> None:
        """Create it empty: a hook of an earlier generation may have put something in its place."""
        delete_folder(self.folder)
        self.folder.mkdir(parents=True)

    def _has_ended(self, rank: int) -> bool:
        return self._processes[rank].poll() is not None or exists(self._exit_file(rank))

    def _exit_file(self, rank: int) -> Path:
        return self.folder / f"exit-{rank}.json"

    def _exit_without_file(self, rank: int) -> RankExit:
        process = self._processes.get(rank)
        code = process.poll() if process else None
        message, kind = "killed by a signal: it wrote no exit file", None
        if not exists(self.folder / f"log-rank{rank}.txt"):
            reason = isinstance(process, RankProcess) and process.error
            message, kind = f"it never started: {reason or _tail(self.folder / LAUNCH_LOG)}", "infrastructure"
        return RankExit(rank=rank, outcome="signal", at=time.time(), code=code, kind=kind, message=message)

    def _start_rank_command(
        self, command: list[str], task_file: Path, environment: dict[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Start one process for all ranks, with torchrun's arguments."""
        arguments = torchrun_command(
            task_file,
            nodes=self.launch_config.nnodes,
            node_rank=self.launch_config.node_rank,
            procs_per_node=self.launch_config.nproc_per_node,
            master_addr=self.launch_config.master_addr,
            master_port=self.launch_config.master_port,
        )[3:]
        agent = os.getpid()
        with log.open("ab") as output:
            return subprocess.Popen(
                [*command, *arguments],
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=lambda: processes.die_with_parent(agent),  # noqa: PLW1509 - the agent runs one thread
            )

    def _generation_environment(self, shared: bool) -> dict[str, str]:
        """`shared`: the machines of a gang share one computer, as they do on loopback."""
        shared = shared or self.launch_config.master_addr in ("127.0.0.1", "localhost", "::1")
        sharing = self.launch_config.nnodes if shared else 1
        cores = max(1, len(os.sched_getaffinity(0)) // sharing)
        return rank_environment(
            self.launch_config.nproc_per_node, cores, interface=network_interface_to(self.launch_config.master_addr)
        )


def rank_server_environment(machine: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The agent's environment without its secrets, with the variables that every generation needs.

    `machine` identifies the server and each process that it starts, so that `terminate_ranks` finds them.
    """
    inherited = {
        name: value
        for name, value in environment.items()
        if name not in REMOVED_VARIABLES and not name.startswith(CREDENTIALS_PREFIX + "AWS_")
    }
    return {**inherited, **rank_environment(1, 1), MACHINE_VARIABLE: machine}


async def terminate_ranks(machine: str, server: RankServerClient | None = None, grace_s: float = GRACE_S) -> None:
    """Terminate every process of any generation on this machine: SIGTERM, a grace period, SIGKILL until none is left.

    `server` is kept for the next generation, unless it has yet to start ranks of this one. Without it every rank server
    of the machine is terminated too.
    """
    launcher = server.launcher if server and not server.has_unstarted_ranks() else None
    kept = {process for process in (launcher, server.process if server and launcher else None) if process}
    importing = server and not server.ready

    def find_ranks() -> set[processes.Process]:
        below = processes.descendants(launcher.pid) if launcher else set()
        marked = processes.find_by_environment({MACHINE_VARIABLE: machine})
        return (marked | below) - (below | kept if importing else kept)

    alive = find_ranks() if grace_s else set()
    for process in alive:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while alive and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
        alive = {process for process in alive if process.is_alive()}
    while not await asyncio.to_thread(processes.kill_all, find_ranks, timeout_s=KILL_TIMEOUT_S):
        pass  # a process in an uninterruptible wait: the machine is not ready until it has exited


def network_interface_to(address: str) -> str | None:
    """The network interface through which this machine reaches `address` (host name or IP); None without a route."""
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends no packet, but selects the route
            local_address = probe.getsockname()[0]
    except OSError:
        return None
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, own in interfaces if local_address in [each.address for each in own]), None)


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _read_exit(path: Path, rank: int) -> RankExit | None:
    try:
        file = ExitFile.model_validate_json(read_file(path, MAX_EXIT_BYTES))
        return RankExit(
            rank=rank,
            outcome=file.outcome,
            step=file.step,
            at=file.t,
            code=int(file.outcome == "error"),
            kind=file.error.kind if file.error else None,
            message=_message(file.error) if file.error else "",
            since=file.error.since if file.error else None,
        )
    except (OSError, ValueError):
        return None


def _message(error: RankError) -> str:
    return "\n\n".join(filter(None, (error.message[:3_000], error.traceback[-TRACEBACK_LIMIT:])))


def _tail(path: Path) -> str:
    try:
        text = read_file(path, MAX_EXIT_BYTES).decode(errors="replace")[-2_000:]
        return text.strip() or "the launcher printed nothing"
    except OSError:
        return "the launcher never started"

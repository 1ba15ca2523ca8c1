# SPDX-License-Identifier: Apache-2.0
"""The training processes of one generation on this machine: how they are started, drained, ended and reported."""

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
from typing import Any

import psutil
from shoestring_core.wire import LaunchConfig, RankExit

from shoestring_trainer import processes
from shoestring_trainer.agent.launch_env import distributed_environment, rank_environment, torchrun_command
from shoestring_trainer.agent.spool import write_durably
from shoestring_trainer.rank_server.client import RankProcess, RankServer

MACHINE_MARK = "SHOESTRING_RANK_MACHINE"
"""In the environment of every rank and of all that it starts: how they are found, whatever session they moved to."""
SECRETS = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "SHOESTRING_POWEROFF", "SHOESTRING_AGENT_RANK_COMMAND")
CREDENTIALS_PREFIX = "SHOESTRING_AGENT_"
"""Before AWS's own names: what a machine of the local cloud may read buckets with. Ranks get none of it."""
STARTED, LAUNCH_LOG = "started.json", "log-launch.txt"
GRACE_S, KILL_S, LINGER_S, LOOK_S = 1.0, 10.0, 10.0, 0.05
ORDER = {"order": "checkpoint_and_stop"}
TRACE_LIMIT = 16_000


class Ranks:
    """The ranks of `generation` on this machine, in their folder, started or not."""

    def __init__(self, folder: Path, generation: int, run: LaunchConfig) -> None:
        self.folder, self.generation, self.run = folder, generation, run
        first = run.node_rank * run.nproc_per_node
        self.numbers = list(range(first, first + run.nproc_per_node))
        self.ended = False
        self._processes: dict[int, RankProcess | subprocess.Popen[bytes]] = {}

    @property
    def holds_rank_0(self) -> bool:
        return 0 in self.numbers

    @property
    def started(self) -> bool:
        """They were started once, by this agent or one before it; they are never started again."""
        return (self.folder / STARTED).exists()

    @classmethod
    def newest_started(cls, generations: Path) -> Ranks | None:
        """The newest that were started here, for an agent that takes over from one that was killed."""
        numbers = [int(path.parent.name) for path in generations.glob(f"*/{STARTED}")]
        if not numbers:
            return None
        folder = generations / str(max(numbers))
        return cls(folder, max(numbers), LaunchConfig.model_validate_json((folder / STARTED).read_text()))

    def start(
        self,
        task: dict[str, Any],
        environment: Mapping[str, str],
        server: RankServer | None,
        stand_in: str | None = None,
    ) -> None:
        """Start the ranks, by the rank server or, for tests of the agent alone, by the command `stand_in`.

        environment  of the server; the ranks add to it what depends on the generation
        raises       OSError if the folder can't be written or a process can't be started
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        task_file, log = self.folder / "task.json", self.folder / LAUNCH_LOG
        task_file.write_text(json.dumps(task))
        write_durably(self.folder / STARTED, self.run.model_dump_json())
        log.touch()
        ranks_environment = {**environment, **self._generation_environment()}
        if server is None:
            launcher = self._start_stand_in(shlex.split(stand_in or ""), task_file, ranks_environment, log)
            self._processes = dict.fromkeys(self.numbers, launcher)
            return
        for local_rank, rank in enumerate(self.numbers):
            place = distributed_environment(
                nodes=self.run.nnodes, node_rank=self.run.node_rank, local_rank=local_rank,
                procs_per_node=self.run.nproc_per_node, master_addr=self.run.master_addr,
                master_port=self.run.master_port,
            )  # fmt: skip
            self._processes[rank] = server.start_rank(
                [str(task_file)], environment=ranks_environment | place, folder=self.folder, log=log
            )

    def drain(self) -> None:
        """Order them to checkpoint and stop; all ranks of the gang agree on the step."""
        draft = self.folder / "order.tmp"
        draft.write_text(json.dumps(ORDER))
        draft.replace(self.folder / "order")

    async def wait(self) -> None:
        """Return when each rank has left its exit file or its process has ended.

        A rank that runs long after another has ended waits for it in vain: it is not waited for.
        """
        first_end = float("inf")
        while self._processes:
            ended = sum(self._has_ended(rank) for rank in self.numbers)
            if ended:
                first_end = min(first_end, time.monotonic())
            if ended == len(self.numbers) or time.monotonic() > first_end + LINGER_S:
                return
            await asyncio.sleep(LOOK_S)

    def exits(self) -> list[RankExit]:
        """How each rank ended, by its exit file; a rank without one was ended by a signal, or never began."""
        return [_read_exit(self._exit_file(rank), rank) or self._exit_without_file(rank) for rank in self.numbers]

    def _has_ended(self, rank: int) -> bool:
        return self._processes[rank].poll() is not None or self._exit_file(rank).exists()

    def _exit_file(self, rank: int) -> Path:
        return self.folder / f"exit-{rank}.json"

    def _exit_without_file(self, rank: int) -> RankExit:
        process = self._processes.get(rank)
        code = process.poll() if process else None
        message, kind = "it left no exit file: a signal ended it", None
        if not (self.folder / f"log-rank{rank}.txt").exists():
            reason = isinstance(process, RankProcess) and process.error
            message, kind = f"it never began: {reason or _tail(self.folder / LAUNCH_LOG)}", "infrastructure"
        return RankExit(rank=rank, outcome="signal", at=time.time(), code=code, kind=kind, message=message)

    def _start_stand_in(
        self, command: list[str], task_file: Path, environment: dict[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """One process that starts all ranks: it gets torchrun's arguments."""
        arguments = torchrun_command(
            task_file,
            nodes=self.run.nnodes,
            node_rank=self.run.node_rank,
            procs_per_node=self.run.nproc_per_node,
            master_addr=self.run.master_addr,
            master_port=self.run.master_port,
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

    def _generation_environment(self) -> dict[str, str]:
        loopback = self.run.master_addr in ("127.0.0.1", "localhost", "::1")
        sharing = self.run.nnodes if loopback else 1  # the machines of such a gang share one computer
        cores = max(1, len(os.sched_getaffinity(0)) // sharing)
        return rank_environment(self.run.nproc_per_node, cores, interface=interface_to(self.run.master_addr))


def server_environment(machine: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The agent's environment without its secrets, with what ranks need set before any generation.

    `machine` marks the server and each process that comes from it, so that `end_ranks` finds them.
    """
    inherited = {
        name: value
        for name, value in environment.items()
        if name not in SECRETS and not name.startswith(CREDENTIALS_PREFIX + "AWS_")
    }
    return {**inherited, **rank_environment(1, 1), MACHINE_MARK: machine}


async def end_ranks(machine: str, server: RankServer | None = None, grace_s: float = GRACE_S) -> None:
    """Return when no process of any generation is left on this machine: SIGTERM, a grace, SIGKILL, look again.

    `server` is spared, to wait for the next generation, unless it has yet to start ranks of this one. Without it every
    rank server of the machine ends too.
    """
    spared = server.process if server and not server.has_unstarted_ranks() else None

    def living() -> set[processes.Process]:
        forked = processes.descendants(spared.pid) if spared else set()
        return {each for each in processes.find_by_environment({MACHINE_MARK: machine}) | forked if each != spared}

    found = living() if grace_s else set()
    for each in found:
        each.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while found and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
        found = {each for each in found if each.is_alive()}
    while not await asyncio.to_thread(processes.kill_all, living, no_children=lambda: True, timeout_s=KILL_S):
        pass  # a process in an uninterruptible wait: the machine is not ready before it is gone


def interface_to(address: str) -> str | None:
    """The network card through which this machine reaches `address`, a name or an IP; None where no route is known."""
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing: it only asks for the route
            own = probe.getsockname()[0]
    except OSError:
        return None
    cards = psutil.net_if_addrs().items()
    return next((name for name, addresses in cards if own in [each.address for each in addresses]), None)


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _read_exit(path: Path, rank: int) -> RankExit | None:
    try:
        word = json.loads(path.read_text())
        error = word.get("error") or {}
        return RankExit(
            rank=rank,
            outcome=word["outcome"],
            step=word.get("step"),
            at=word["t"],
            code=0 if word["outcome"] != "error" else 1,
            kind=error.get("kind"),
            message=_message(error),
            since=error.get("since"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _message(error: dict[str, Any]) -> str:
    trace = str(error.get("traceback") or "")
    return "\n\n".join(part for part in (str(error.get("message") or "")[:3_000], trace[-TRACE_LIMIT:]) if part)


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-2_000:].strip() or "the launcher said nothing"
    except OSError:
        return "the launcher never began"

# SPDX-License-Identifier: Apache-2.0
"""The training processes of one generation on this machine: started, told to stop, ended for sure, and how."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from shoestring_core.wire import LaunchConfig, RankExit

from shoestring_trainer import processes
from shoestring_trainer.agent.launch_env import lone_rank, rank_environment, torchrun_command
from shoestring_trainer.agent.spool import write_durably

MARK = "SHOESTRING_RANKS_OF"
"""In the environment of every rank and of all that it starts: how they are found, whatever session they moved to."""
SECRETS = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "SHOESTRING_POWEROFF", "SHOESTRING_AGENT_RANK_COMMAND")
KEYS_PREFIX = "SHOESTRING_AGENT_"
"""Before AWS's own names: what a machine of the local cloud may read buckets with. Ranks get none of it."""
STARTED = "started.json"
GRACE_S, KILL_S, LINGER_S, LOOK_S = 1.0, 10.0, 10.0, 0.05
ORDER = {"order": "checkpoint_and_stop"}
TRACE_LIMIT = 16_000


class Ranks:
    """The ranks of `generation` on this machine, in their folder, started or not."""

    def __init__(self, folder: Path, generation: int, run: LaunchConfig) -> None:
        self.folder, self.generation, self.run = folder, generation, run
        first = run.node_rank * run.nproc_per_node
        self.numbers = list(range(first, first + run.nproc_per_node))
        self.over = False
        self._launcher: asyncio.subprocess.Process | None = None

    @property
    def holds_rank_0(self) -> bool:
        return 0 in self.numbers

    @property
    def started(self) -> bool:
        """They were started once, by this agent or one before it; they are never started again."""
        return (self.folder / STARTED).exists()

    @classmethod
    def found(cls, generations: Path) -> Ranks | None:
        """The newest that were started here, for an agent that takes over from one that was killed."""
        numbers = [int(path.parent.name) for path in generations.glob(f"*/{STARTED}")]
        if not numbers:
            return None
        folder = generations / str(max(numbers))
        return cls(folder, max(numbers), LaunchConfig.model_validate_json((folder / STARTED).read_text()))

    async def start(self, machine: str, task: dict[str, Any], environment: Mapping[str, str]) -> None:
        """Raises OSError if the folder can't be written or the launcher is not to be found."""
        self.folder.mkdir(parents=True, exist_ok=True)
        spec = self.folder / "task.json"
        spec.write_text(json.dumps(task))
        write_durably(self.folder / STARTED, self.run.model_dump_json())
        agent = os.getpid()
        command, places = self._command(spec, environment.get("SHOESTRING_AGENT_RANK_COMMAND"))
        with (self.folder / "log-launch.txt").open("ab") as log:
            self._launcher = await asyncio.create_subprocess_exec(
                *command,
                env=self._environment(machine, environment) | places,
                cwd=self.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: processes.die_with_parent(agent),
            )

    def drain(self) -> None:
        """Order them to checkpoint and stop; all ranks of the gang agree on the step."""
        draft = self.folder / "order.tmp"
        draft.write_text(json.dumps(ORDER))
        draft.replace(self.folder / "order")

    async def gone(self) -> int | None:
        """Wait until the ranks have left their words or the launcher has ended; its exit code, if it has one.

        The launcher itself takes a second to leave, and is not waited for. A rank that goes on long after another has
        ended waits for a peer in vain.
        """
        first_word = float("inf")
        while self._launcher and self._launcher.returncode is None:
            words = sum(self._word(rank).exists() for rank in self.numbers)
            if words:
                first_word = min(first_word, time.monotonic())
            if words == len(self.numbers) or time.monotonic() > first_word + LINGER_S:
                return None
            await asyncio.sleep(LOOK_S)
        return self._launcher.returncode if self._launcher else None

    def exits(self, code: int | None) -> list[RankExit]:
        """How each rank ended, by the word it left; without one a signal ended it."""
        return [_read_exit(self._word(rank), rank) or self._silent(rank, code) for rank in self.numbers]

    def _word(self, rank: int) -> Path:
        return self.folder / f"exit-{rank}.json"

    def _silent(self, rank: int, code: int | None) -> RankExit:
        message, kind = "it left no word: a signal ended it", None
        if not (self.folder / f"log-rank{rank}.txt").exists():
            message, kind = f"it never began: {_tail(self.folder / 'log-launch.txt')}", "infrastructure"
        return RankExit(rank=rank, outcome="signal", at=time.time(), code=code, kind=kind, message=message)

    def _command(self, spec: Path, stand_in: str | None) -> tuple[list[str], dict[str, str]]:
        run = self.run
        if run.skip_torchrun and run.nproc_per_node == 1 and not stand_in:
            return lone_rank(
                spec,
                nodes=run.nnodes,
                node_rank=run.node_rank,
                master_addr=run.master_addr,
                master_port=run.master_port,
            )
        command = torchrun_command(
            spec,
            nodes=run.nnodes,
            node_rank=run.node_rank,
            procs_per_node=run.nproc_per_node,
            master_addr=run.master_addr,
            master_port=run.master_port,
        )
        # for tests of the agent alone: another launcher, which gets torchrun's arguments
        return ([*shlex.split(stand_in), *command[3:]] if stand_in else command), {}

    def _environment(self, machine: str, environment: Mapping[str, str]) -> dict[str, str]:
        loopback = self.run.master_addr in ("127.0.0.1", "localhost", "::1")
        sharing = self.run.nnodes if loopback else 1  # the machines of such a gang share one computer
        cores = max(1, len(os.sched_getaffinity(0)) // sharing)
        inherited = {
            name: value
            for name, value in environment.items()
            if name not in SECRETS and not name.startswith(KEYS_PREFIX + "AWS_")
        }
        interface = interface_towards(self.run.master_addr)
        return {**inherited, **rank_environment(self.run.nproc_per_node, cores, interface=interface), MARK: machine}


async def end_ranks(machine: str, grace_s: float = GRACE_S) -> None:
    """Returns when no process of any generation is left on this machine: SIGTERM, a grace, SIGKILL, look again."""

    def living() -> set[processes.Process]:
        return processes.carrying({MARK: machine})

    found = living() if grace_s else set()
    for each in found:
        each.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while found and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
        found = {each for each in found if each.alive()}
    while not await asyncio.to_thread(processes.kill_all, living, childless=lambda: True, within_s=KILL_S):
        pass  # a process in an uninterruptible wait: the machine is not ready before it is gone


def interface_towards(address: str) -> str | None:
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

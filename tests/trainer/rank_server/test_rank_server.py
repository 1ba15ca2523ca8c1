# SPDX-License-Identifier: Apache-2.0
"""The rank server: its ranks are as good as new processes, and none outlives it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoestring_core.task import RecipeTask
from shoestring_core.wire import LaunchConfig
from shoestring_trainer import processes
from shoestring_trainer.agent.ranks import MACHINE_VARIABLE, Ranks, rank_server_environment, terminate_ranks
from shoestring_trainer.rank_server.client import RankServerClient
from shoestring_trainer.rank_server.protocol import RankServerReply, StartRank

from tests.servers import PATIENCE_S, until
from tests.trainer.training.gangs import DIGITS, RANKS_PATIENCE_S, base_environment, finished, gang, rank_server

MACHINE = "a-test-of-rank-servers"
SHORT = DIGITS | {"epochs": 1}
ENDLESS = DIGITS | {"epochs": 10_000}

WRITE_STATE = """
import ctypes, gc, json, os, signal, sys
import numpy, torch

def on_train_begin(context):
    death = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(death))  # PR_GET_PDEATHSIG
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    state = {
        "environment": dict(os.environ), "argv": sys.argv, "threads": torch.get_num_threads(),
        "draw": numpy.random.random(), "session": os.getsid(0) == os.getpid(), "folder": os.getcwd(),
        "descriptors": [os.readlink(link) for link in links if os.path.islink(link)],
        "sigchld": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
        "sigint": signal.getsignal(signal.SIGINT) == signal.default_int_handler,
        "mask": list(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "collects": gc.isenabled(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "death_signal": death.value, "name": open("/proc/self/comm").read().strip(),
    }
    with open("state.json", "w") as file:
        json.dump(state, file)
"""

LEAVE_A_PROCESS = """
import subprocess

def on_train_begin(context):
    child = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True, env={})
    with open("left.pid", "w") as file:
        file.write(str(child.pid))
"""

ASK_NO_DEVICE = """
import torch
from shoestring_trainer.rank_server.server import import_training

def fail(*_, **__):
    raise AssertionError("a CUDA device was asked for")

for name in ("is_available", "device_count", "_lazy_init", "current_device"):
    setattr(torch.cuda, name, fail)
import_training()
"""

SERVE_WITH_TWO_THREADS = """
import threading
from shoestring_trainer.rank_server.server import RankServer

threading.Thread(target=threading.Event().wait, daemon=True).start()
RankServer(0, 1).serve()
"""


@pytest.mark.parametrize(
    ("nodes", "procs", "threads"), [(1, 1, (2,)), (1, 2, (1,)), (2, 1, (2, 1))], ids=["1 rank", "2 ranks", "2 machines"]
)
def test_a_forked_rank_trains_to_the_same_bits_as_one_of_torchrun(
    tmp_path: Path, nodes: int, procs: int, threads: tuple[int, ...]
) -> None:
    options = {"nodes": nodes, "procs": procs, "threads": threads, "params": SHORT | {"width": 16, "batch_size": 64}}
    forked = finished(tmp_path / "forked", **options)
    executed = finished(tmp_path / "executed", torchrun=True, **options)
    assert forked.state_hashes() == executed.state_hashes()
    losses = [[line["v"]["train/loss"] for line in run.metrics()] for run in (forked, executed)]
    assert losses[0] == losses[1]


def test_a_rank_inherits_nothing_that_a_new_process_would_not_have(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks.py"
    hooks.write_text(WRITE_STATE)
    run = finished(tmp_path / "run", nodes=2, threads=(2, 1), params=SHORT | {"hooks_file": str(hooks)})
    states = [json.loads((folder / "state.json").read_text()) for folder in run.folders]
    server = rank_server().process
    assert server
    pipes = {str(link.readlink()) for link in Path(f"/proc/{server.pid}/fd").iterdir()} - {os.devnull}
    for rank, (state, folder) in enumerate(zip(states, run.folders, strict=True)):
        assert state["environment"]["RANK"] == str(rank)
        assert state["environment"]["LOCAL_RANK"] == "0"
        assert state["environment"]["PYTEST_CURRENT_TEST"].startswith("tests/trainer/rank_server")
        assert state["argv"][1:] == ["train", str(folder / "task.json")]
        assert state["threads"] == (2, 1)[rank]
        assert state["folder"] == str(folder)
        assert pipes.isdisjoint(state["descriptors"])
        assert state["mask"] == []
        assert state["niceness"] == min(19, os.getpriority(os.PRIO_PROCESS, server.pid) + processes.NICENESS)
        assert state["death_signal"] == signal.SIGKILL
        assert state["name"] == f"rank {rank}"
        assert all(state[name] for name in ("session", "sigchld", "collects"))
        # ignored where the whole run ignores it, as a shell makes its background jobs do
        assert state["sigint"] == (signal.getsignal(signal.SIGINT) == signal.default_int_handler)
    assert states[0]["draw"] != states[1]["draw"]


def test_an_idle_server_has_one_thread_and_no_child(tmp_path: Path) -> None:
    finished(tmp_path, params=SHORT, bare=True)
    server = rank_server().process
    assert server
    assert len(os.listdir(f"/proc/{server.pid}/task")) == 1
    until(lambda: not processes.descendants(server.pid))


def test_a_rank_that_is_killed_is_reported_and_the_server_starts_the_next(tmp_path: Path) -> None:
    server = rank_server().process
    with gang(tmp_path / "killed", params=ENDLESS) as run:
        run.until_step(1)
        os.kill(run.rank_pids()[0], signal.SIGKILL)
        assert run.wait() == [-signal.SIGKILL]
    finished(tmp_path / "next", params=SHORT, bare=True)
    assert rank_server().process == server


def test_the_end_of_a_generation_spares_the_server_and_nothing_else(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks.py"
    hooks.write_text(LEAVE_A_PROCESS)
    server = rank_server()
    with gang(tmp_path / "run", params=ENDLESS | {"hooks_file": str(hooks)}) as run:
        run.until_step(1)
        left = processes.identify(int((run.first / "left.pid").read_text()))
        before = server.process
        asyncio.run(terminate_ranks(MACHINE, server, grace_s=0))
        assert run.wait() == [-signal.SIGKILL]
    assert not left.is_alive()  # though it has another session, another environment and a dead parent
    assert server.process == before


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RankServerClient]:
    """A server that the test may kill, marked as one of MACHINE."""
    server = RankServerClient(rank_server_environment(MACHINE, base_environment()), tmp_path / "rank-server.log")
    yield server
    server.close()
    assert not processes.find_by_environment({MACHINE_VARIABLE: MACHINE})


def test_a_killed_server_takes_its_ranks_along_and_is_started_again(
    own_server: RankServerClient, tmp_path: Path
) -> None:
    task = tmp_path / "task.json"
    task.write_text(json.dumps({"format": 1, "job": "job", "generation": 1, "recipe": "digits/quickstart",
                                "params": ENDLESS, "seed": 1}))  # fmt: skip
    environment = rank_server_environment(MACHINE, base_environment()) | {"RANK": "0", "WORLD_SIZE": "1"}

    def start():
        return own_server.start_rank([str(task)], environment=environment, folder=tmp_path, log=tmp_path / "log.txt")

    rank = start()
    until(lambda: rank.poll() is None and (tmp_path / "metrics.jsonl").exists(), RANKS_PATIENCE_S)
    assert rank.process
    server = own_server.process
    assert server
    server.send_signal(signal.SIGKILL)
    assert rank.wait(RANKS_PATIENCE_S) == -signal.SIGKILL
    until(lambda: not processes.find_by_environment({MACHINE_VARIABLE: MACHINE}))
    assert "rank server ended" in rank.error

    waiting = start()
    assert own_server.process != server
    assert own_server.has_unstarted_ranks()
    asyncio.run(
        terminate_ranks(MACHINE, own_server, grace_s=0)
    )  # else it would start the rank after the generation's end
    assert waiting.wait(RANKS_PATIENCE_S) != 0
    assert own_server.process is None


def test_a_server_that_cannot_import_torch_is_each_ranks_end(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch_cpu.so is damaged')")
    base = base_environment()
    environment = rank_server_environment(MACHINE, base | {"PYTHONPATH": f"{tmp_path}:{base['PYTHONPATH']}"})
    server = RankServerClient(environment, tmp_path / "rank-server.log")
    task = RecipeTask(format=1, job="job", generation=1, recipe="digits/quickstart")
    launch = LaunchConfig(node_rank=0, nnodes=1, nproc_per_node=1, master_addr="127.0.0.1", master_port=1, task=task)
    ranks = Ranks(tmp_path, 1, launch)
    ranks.start(task, environment, server)
    asyncio.run(asyncio.wait_for(ranks.wait(), RANKS_PATIENCE_S))
    (end,) = ranks.exits()
    assert (end.outcome, end.kind, end.code) == ("signal", "infrastructure", 1)
    assert end.message.startswith("it never started: the rank server ended")
    assert "libtorch_cpu.so is damaged" in end.message


def test_importing_the_training_loop_asks_for_no_device() -> None:
    """A process that has asked how many there are can't use any after a fork."""
    subprocess.run([sys.executable, "-c", ASK_NO_DEVICE], env=base_environment(), timeout=PATIENCE_S, check=True)


def test_a_process_with_two_threads_is_not_forked() -> None:
    request = StartRank(1, ["task.json"], {}, "/", os.devnull)
    command = [sys.executable, "-c", SERVE_WITH_TWO_THREADS]
    replies = subprocess.run(
        command, input=request.line(), env=base_environment(), capture_output=True, timeout=PATIENCE_S, check=True
    ).stdout.splitlines()
    refusal = RankServerReply.parse(replies[-1])
    assert (refusal.id, refusal.pid, refusal.exit_code) == (1, None, 1)
    assert "2 threads" in refusal.error

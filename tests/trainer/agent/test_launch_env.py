# SPDX-License-Identifier: Apache-2.0
"""The command and the environment of a rank, without torch."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import psutil
import pytest
from shoestring_trainer import __main__ as program
from shoestring_trainer.agent.launch_env import distributed_environment, rank_environment, torchrun_command
from shoestring_trainer.agent.ranks import network_interface_to


def test_the_torchrun_command_has_all_arguments():
    command = torchrun_command(
        Path("run/task.json"), nodes=2, node_rank=1, procs_per_node=4, master_addr="10.0.0.7", master_port=29500,
        python="python",
    )  # fmt: skip
    assert " ".join(command) == (
        "python -m torch.distributed.run --nnodes 2 --node-rank 1 --nproc-per-node 4 --master-addr 10.0.0.7 "
        "--master-port 29500 --max-restarts 0 -m shoestring_trainer train run/task.json"
    )


def test_a_rank_gets_the_variables_that_torchrun_would_set():
    variables = distributed_environment(
        nodes=3, node_rank=2, local_rank=1, procs_per_node=2, master_addr="10.0.0.7", master_port=29500
    )
    assert variables == {
        "RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "2",
        "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500",
    }  # fmt: skip


@pytest.mark.parametrize(("procs", "cores", "threads"), [(1, 2, "2"), (2, 2, "1"), (4, 2, "1"), (2, 9, "4")])
def test_ranks_share_the_cores_evenly(procs: int, cores: int, threads: str):
    assert rank_environment(procs, cores)["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize(
    ("variables", "threads"), [({}, None), ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "7"}, "7")]
)
def test_by_hand_training_starts_as_an_agent_starts_it_but_for_what_is_set(
    variables: dict[str, str], threads: str | None, monkeypatch: pytest.MonkeyPatch
):
    started: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(os, "execve", lambda *given: started.append(given))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-P", "-m", "shoestring_trainer", "train", "digits/quickstart"])
    program.start_again_with_rank_environment()
    ((executable, command, environment),) = started
    assert executable == sys.executable
    assert command == [sys.executable, "-P", "-m", "shoestring_trainer", "train", "digits/quickstart"]
    given = rank_environment(1, len(os.sched_getaffinity(0)))
    assert environment == given | variables
    assert environment["OMP_NUM_THREADS"] == (threads or given["OMP_NUM_THREADS"])
    monkeypatch.setattr(os, "environ", environment)
    program.start_again_with_rank_environment()
    assert len(started) == 1


def test_ranks_use_the_given_network_interface():
    chosen = {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}
    assert not chosen & set(rank_environment(1, 1))
    environment = rank_environment(1, 1, interface="ens5")
    assert [environment[name] for name in sorted(chosen)] == ["ens5", "=ens5"]


def test_the_network_interface_is_found_by_the_route():
    assert network_interface_to("127.0.0.1") == network_interface_to("localhost") == "lo"
    assert network_interface_to("no.such.host.invalid") is None
    for name, addresses in psutil.net_if_addrs().items():  # rank 0 itself reaches its own address
        for own in addresses:
            if own.family == socket.AF_INET:
                assert network_interface_to(own.address) == name

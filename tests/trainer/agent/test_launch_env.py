# SPDX-License-Identifier: Apache-2.0
"""The command and the environment of a rank, decided without torch."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil
import pytest
from shoestring_trainer.agent.launch_env import distributed_environment, rank_environment, torchrun_command
from shoestring_trainer.agent.ranks import interface_to


def test_the_command_is_the_contracts():
    command = torchrun_command(
        Path("run/task.json"), nodes=2, node_rank=1, procs_per_node=4, master_addr="10.0.0.7", master_port=29500,
        python="python",
    )  # fmt: skip
    assert " ".join(command) == (
        "python -m torch.distributed.run --nnodes 2 --node-rank 1 --nproc-per-node 4 --master-addr 10.0.0.7 "
        "--master-port 29500 --max-restarts 0 -m shoestring_trainer train run/task.json"
    )


def test_a_rank_gets_its_place_as_torchrun_would_give_it():
    place = distributed_environment(
        nodes=3, node_rank=2, local_rank=1, procs_per_node=2, master_addr="10.0.0.7", master_port=29500
    )
    assert place == {
        "RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "2",
        "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500",
    }  # fmt: skip


@pytest.mark.parametrize(("procs", "cores", "threads"), [(1, 2, "2"), (2, 2, "1"), (4, 2, "1"), (2, 9, "4")])
def test_ranks_share_the_cores_evenly(procs: int, cores: int, threads: str):
    assert rank_environment(procs, cores)["OMP_NUM_THREADS"] == threads


def test_ranks_meet_on_the_card_that_leads_to_rank_0():
    chosen = {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}
    assert not chosen & set(rank_environment(1, 1))
    environment = rank_environment(1, 1, interface="ens5")
    assert [environment[name] for name in sorted(chosen)] == ["ens5", "=ens5"]


def test_the_card_is_found_by_the_route():
    assert interface_to("127.0.0.1") == interface_to("localhost") == "lo"
    assert interface_to("no.such.host.invalid") is None
    for name, addresses in psutil.net_if_addrs().items():  # on its own machine, rank 0 is reached by its own address
        for own in addresses:
            if own.family == socket.AF_INET:
                assert interface_to(own.address) == name

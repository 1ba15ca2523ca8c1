# SPDX-License-Identifier: Apache-2.0
"""The ranks of a generation, started by a rank server: they train, and report how they ended."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from shoestring_core.task import RecipeTask
from shoestring_core.wire import LaunchConfig
from shoestring_trainer.agent.ranks import Ranks, rank_server_environment

from tests.servers import free_port
from tests.trainer.training.gangs import RANKS_PATIENCE_S, base_environment, rank_server

TASK = RecipeTask(
    format=1, job="job", generation=2, recipe="digits/quickstart", seed=1, precision="fp32",
    params={"epochs": 1, "width": 4, "batch_size": 64},
)  # fmt: skip
MACHINE = "a-test-of-ranks"


@pytest.mark.parametrize(("machines", "procs"), [(2, 1), (1, 2)])
def test_ranks_connect_train_and_write_exit_files(tmp_path: Path, machines: int, procs: int):
    exits = asyncio.run(train(tmp_path, machines, procs))
    assert [(end.rank, end.outcome, end.step) for end in exits] == [(0, "finished", 23), (1, "finished", 23)]
    events = [json.loads(line) for line in (tmp_path / "0/gen/2/events.jsonl").read_text().splitlines()]
    assert (events[0]["event"], events[0]["world_size"]) == ("started", 2)
    assert events[-1]["final"]


async def train(folder: Path, machines: int, procs: int):
    port, environment = free_port(), rank_server_environment(MACHINE, base_environment())
    ranks = [
        Ranks(
            folder / str(machine), 2,
            LaunchConfig(
                node_rank=machine, nnodes=machines, nproc_per_node=procs, master_addr="127.0.0.1", master_port=port,
                task=TASK,
            ),
        )
        for machine in range(machines)
    ]  # fmt: skip
    for each in ranks:
        each.start(TASK, environment, rank_server())
    for each in ranks:
        await asyncio.wait_for(each.wait(), RANKS_PATIENCE_S)
    return [end for each in ranks for end in each.exits()]

# SPDX-License-Identifier: Apache-2.0
"""Ranks of a gang whose members change: started without a launcher, they train and end all the same."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from shoestring_core.wire import LaunchConfig
from shoestring_trainer.agent.ranks import Ranks, end_ranks

from tests.servers import free_port
from tests.trainer.training.gangs import ROOMS

TASK = {
    "format": 1, "job": "job", "generation": 2, "recipe": "digits/quickstart", "seed": 1, "precision": "fp32",
    "params": {"epochs": 1, "width": 4, "batch_size": 64},
}  # fmt: skip
MARK = "a-test-of-ranks"


def test_lone_ranks_of_two_machines_meet_train_and_leave_their_words(tmp_path: Path):
    exits = asyncio.run(train(tmp_path))
    assert [(end.rank, end.outcome, end.step) for end in exits] == [(0, "finished", 23), (1, "finished", 23)]
    events = [json.loads(line) for line in (tmp_path / "0" / "events.jsonl").read_text().splitlines()]
    assert (events[0]["event"], events[0]["world_size"]) == ("started", 2)
    assert events[-1]["final"]


async def train(folder: Path):
    port, environment = free_port(), os.environ | {"PYTHONPATH": os.pathsep.join(ROOMS)}
    ranks = [
        Ranks(
            folder / str(node), 2,
            LaunchConfig(
                node_rank=node, nnodes=2, nproc_per_node=1, master_addr="127.0.0.1", master_port=port, task=TASK,
                skip_torchrun=True,
            ),
        )
        for node in range(2)
    ]  # fmt: skip
    try:
        for one in ranks:
            await one.start(MARK, TASK, environment)
        codes = [await asyncio.wait_for(one.gone(), 120) for one in ranks]
        return [end for one, code in zip(ranks, codes, strict=True) for end in one.exits(code)]
    finally:
        await end_ranks(MARK, grace_s=0)

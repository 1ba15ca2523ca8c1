# SPDX-License-Identifier: Apache-2.0
"""Ranks that wait for each other stop waiting when one of them is asked to stop: all of them or none."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from shoestring_trainer.data_sync.shard_requests import ShardRequests
from shoestring_trainer.training.data.shard_feed import ShardFeed
from shoestring_trainer.training.data.shard_order import ShardOrder
from shoestring_trainer.training.distributed import context
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.stop_listener import StopOrdered

from tests.servers import PATIENCE_S

WORLD = 3
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    store = dist.HashStore()
    monkeypatch.setattr(context, "_store", lambda: store)
    return store


def outcomes(*ranks: Callable[[], None]) -> list[str]:
    """What becomes of ranks that do this at the same time."""

    def run(rank: Callable[[], None]) -> str:
        try:
            rank()
            return "goes on"
        except StopOrdered:
            return "stops"

    with ThreadPoolExecutor(len(ranks)) as pool:
        return [future.result(PATIENCE_S) for future in [pool.submit(run, rank) for rank in ranks]]


def test_ranks_go_on_together_if_none_is_asked_to_stop():
    ranks = [DistributedContext(rank, WORLD, 0, CPU) for rank in range(WORLD)]
    assert outcomes(*(lambda rank=rank: rank.wait_for_peers("a") for rank in ranks)) == ["goes on"] * WORLD


def test_a_rank_that_is_asked_before_it_comes_stops_all():
    ranks = [DistributedContext(rank, WORLD, 0, CPU, lambda rank=rank: rank == 1) for rank in range(WORLD)]
    assert outcomes(*(lambda rank=rank: rank.wait_for_peers("a") for rank in ranks)) == ["stops"] * WORLD


def test_a_rank_that_waits_is_heard_by_the_one_it_waits_for(store: dist.Store):
    """Which would go on for ever with what takes it so long."""
    asked: list[int] = []
    waiting = DistributedContext(0, 2, 0, CPU, lambda: bool(asked))
    working = DistributedContext(1, 2, 0, CPU)

    def work() -> None:
        assert not working.is_stopping("a")
        while store.add("a", 0) < 1:
            pass  # until the other one waits
        asked.append(1)
        while not working.is_stopping("a"):
            pass
        working.wait_for_peers("a")

    assert outcomes(lambda: waiting.wait_for_peers("a"), work) == ["stops"] * 2


def test_a_rank_that_is_asked_after_it_came_stops_none_that_may_have_gone_on(
    store: dist.Store, monkeypatch: pytest.MonkeyPatch
):
    """The next step tells them."""
    asked: list[int] = []
    late = DistributedContext(0, 2, 0, CPU, lambda: bool(asked))
    store.add("a", 1)  # the other one, which has cast its vote
    store.add("a: stop", 0)
    add = store.add

    class Asking:
        """Asks the rank when it has come."""

        def add(self, key: str, amount: int) -> int:
            asked.extend([1] * (key == "a" and amount))
            return add(key, amount)

        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

    monkeypatch.setattr(context, "_store", Asking)
    late.wait_for_peers("a")
    assert asked


def test_a_stop_ends_the_wait_for_shards_that_are_still_to_come(tmp_path: Path):
    """Before a step and before an evaluation: nothing of them is there."""
    shards, asked = 4, []
    place = DistributedContext(0, 1, 0, CPU, lambda: bool(asked))
    names = [f"{number}.tar" for number in range(shards + 1)]
    (tmp_path / "shards").mkdir()
    order = ShardOrder(1, torch.full((shards,), 10), 10 * shards)
    (tmp_path / "shards" / names[order.first_shard]).touch()
    with closing(ShardRequests(tmp_path / "requests", tmp_path / "shards", names, "s3", print)) as requests:
        feed = ShardFeed(requests, order, [shards], 10 * shards, place)
        feed.begin(0)
        asked.append(1)
        with pytest.raises(StopOrdered):
            feed.before_batch(0, 40)
        with pytest.raises(StopOrdered):
            feed.before_evaluation()

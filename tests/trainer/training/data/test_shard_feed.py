# SPDX-License-Identifier: Apache-2.0
"""What a rank asks for, and when: nothing of the network is left idle while a run is set up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from shoestring_trainer.training.data.shard_feed import ShardFeed
from shoestring_trainer.training.data.shard_order import ShardOrder

from tests.trainer.training.data.sample_images import SINGLE_PROCESS

SHARDS, PER_SHARD, EPOCHS = 40, 10, 2
SAMPLES = SHARDS * PER_SHARD
VAL = [SHARDS, SHARDS + 1]


class Recorder:
    """Stands for the requests of a rank, whose shards are all there."""

    def __init__(self) -> None:
        self.announced: list[list[int]] = []
        self.awaited: list[list[int]] = []

    def announce(self, order: list[int]) -> None:
        self.announced.append(order)

    def wait_for(self, numbers: list[int], give_up: Callable[[], bool]) -> float:
        assert not give_up()
        self.awaited.append(list(numbers))
        return 0.0

    def received(self, number: int) -> None:
        """Take note."""


def feed() -> tuple[ShardFeed, Any]:
    requests: Any = Recorder()
    order = ShardOrder(1, torch.full((SHARDS,), PER_SHARD), SAMPLES)
    return ShardFeed(requests, order, VAL, EPOCHS * SAMPLES, SINGLE_PROCESS), requests


def test_the_first_windows_shards_are_asked_for_while_the_run_is_set_up_by_one():
    begun, requests = feed()
    begun.begin(0)
    assert requests.awaited == [[0]]
    (announced,) = requests.announced
    epoch = begun.order.shards(0).tolist()
    assert announced[0] == 0
    assert announced[1 : SHARDS + 1] == [*(shard for shard in epoch if shard != 0), VAL[0]]
    begun.before_batch(0, 8)
    assert len(requests.announced) == 1


def test_a_resumed_run_asks_for_nothing_of_what_went_before():
    begun, requests = feed()
    begun.begin(SAMPLES + SAMPLES // 2)
    (announced,) = requests.announced
    (window,) = begun.order.windows(SAMPLES + SAMPLES // 2, 1)
    assert announced[1:] == [shard for shard in [*begun.order.upcoming(window), *VAL] if shard != 0]


def test_a_run_that_is_over_asks_for_no_more_than_it_is_set_up_with():
    begun, requests = feed()
    begun.begin(EPOCHS * SAMPLES)
    assert requests.announced == [[0]]

# SPDX-License-Identifier: Apache-2.0
"""Streamed samples come in an order of (seed, epoch) for which a window of shards is enough at a time."""

from __future__ import annotations

import torch
from shoestring_trainer.training.data.shard_list import SHUFFLED_TOGETHER
from shoestring_trainer.training.data.shard_order import ShardOrder, Window
from shoestring_trainer.training.randomness import DistributedSampler, generator

SHARDS, PER_SHARD = 50, 5
SAMPLES = SHARDS * PER_SHARD
COUNTS = torch.full((SHARDS,), PER_SHARD)
ORDER = ShardOrder(7, COUNTS, SAMPLES)


def test_an_epoch_has_each_sample_once_and_depends_on_seed_and_epoch_alone():
    orders = [ORDER.epoch(0), ORDER.epoch(1), ShardOrder(8, COUNTS, SAMPLES).epoch(0)]
    for order_N in orders:
        assert torch.equal(order_N.sort().values, torch.arange(SAMPLES, dtype=torch.int32))
    assert not any(torch.equal(orders[0], other) for other in orders[1:])
    assert torch.equal(orders[0], ShardOrder(7, COUNTS, SAMPLES).epoch(0))


def test_samples_are_those_of_the_windows_that_were_asked_for():
    for start in range(0, 2 * SAMPLES, 30):
        samples = DistributedSampler(7, SAMPLES, 0, 1, order=ORDER.epoch).batch(start, 30)
        shards = {shard for window in ORDER.windows(start, 30) for shard in ORDER.window_shards(window)}
        assert set((samples.ids_N // PER_SHARD).tolist()) <= shards
        assert len(ORDER.windows(start, 30)) <= 2


def test_windows_follow_one_another_through_the_epochs():
    last = 3  # 50 shards in windows of 12 and 13
    assert ORDER.windows(0, 1) == [Window(0, 0)]
    assert ORDER.windows(SAMPLES - 1, 2) == [Window(0, last), Window(1, 0)]
    assert ORDER.upcoming(Window(1, last)) == ORDER.window_shards(Window(1, last))
    assert sorted(ORDER.upcoming(Window(1, 0))) == list(range(SHARDS))


def test_the_samples_of_a_window_are_shuffled_among_its_shards():
    first = ORDER.epoch(0)[: len(ORDER.window_shards(Window(0, 0))) * PER_SHARD]
    assert len(ORDER.window_shards(Window(0, 0))) <= SHUFFLED_TOGETHER
    assert ((first // PER_SHARD).diff() != 0).sum() > 40


def test_an_epochs_order_is_a_permutation_sorted_by_window_whatever_shards_hold_validation_images():
    """So it has been since shards can be streamed: a run may resume with a newer trainer."""
    counts = torch.tensor([3, 0, 4, 1, 0, 5] * 9)
    order = ShardOrder(7, counts, int(counts.sum()))
    place = {shard: place for place, shard in enumerate(order.shards(2).tolist())}
    ends = [0, 12, 24, 36]  # 36 shards in three windows
    shards = torch.arange(len(counts)).repeat_interleave(counts).tolist()
    random = torch.randperm(len(shards), generator=generator(7, "order", 2)).tolist()
    windows = {sample: sum(place[shards[sample]] >= end for end in ends[1:]) for sample in random}
    assert order.epoch(2).tolist() == sorted(random, key=windows.__getitem__)
    assert order.first_shard == 0
    assert ShardOrder(7, torch.tensor([0, 2]), 2).first_shard == 1

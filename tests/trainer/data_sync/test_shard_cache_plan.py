# SPDX-License-Identifier: Apache-2.0
"""The shards that are used next are on the disk, within its limit; what is used last makes room."""

from __future__ import annotations

import random

from shoestring_trainer.data_sync.shard_cache_plan import CachePlan, plan_cache

SIZES = [10] * 8


def plan(limit: int, *, present=(), loading=(), orders=(), awaited=()) -> CachePlan:
    return plan_cache(
        SIZES, present=set(present), loading=set(loading), orders=orders, awaited=set(awaited), limit=limit
    )  # fmt: skip


def test_shards_are_downloaded_in_the_order_of_their_use_as_far_as_there_is_room():
    assert plan(35, orders=[[5, 1, 7, 0]]) == CachePlan([5, 1, 7], [])
    assert plan(100, orders=[[5, 1], [1, 2]]) == CachePlan([1, 5, 2], [])


def test_nothing_is_deleted_while_there_is_room():
    assert plan(40, present=[3, 4], orders=[[5, 1]]) == CachePlan([5, 1], [])


def test_what_is_used_last_or_never_makes_room():
    assert plan(40, present=[0, 1, 2, 3], orders=[[5, 1, 2, 3, 0]]) == CachePlan([5], [0])
    assert plan(40, present=[0, 1, 2, 3], orders=[[5, 1, 3, 0]]) == CachePlan([5], [2])


def test_a_shard_that_a_process_waits_for_comes_first_if_no_order_names_it():
    assert plan(20, present=[0, 1], orders=[[0, 1]], awaited=[6]) == CachePlan([6], [1])
    assert plan(20, present=[0], orders=[[0, 1, 6]], awaited=[6]) == CachePlan([1], [])


def test_downloads_under_way_count_against_the_limit():
    assert plan(20, loading=[7], orders=[[0, 1]]) == CachePlan([0], [])


def test_the_cache_of_a_whole_run_never_exceeds_its_limit_and_downloads_no_more_than_any_other_rule(seed: int):
    """Beside least recently used, which doesn't know the future."""
    random.seed(seed)
    uses = [shard for _ in range(5) for shard in random.sample(range(8), 8)]
    present: set[int] = set()
    downloads = 0
    for place in range(len(uses)):
        decided = plan(40, present=present, orders=[list(dict.fromkeys(uses[place:]))])
        present = (present - set(decided.evict)) | set(decided.fetch)
        downloads += len(decided.fetch)
        assert uses[place] in present
        assert sum(SIZES[shard] for shard in present) <= 40
    recent: list[int] = []
    misses = 0
    for shard in uses:
        misses += shard not in recent
        recent = [*(other for other in recent if other != shard), shard][-4:]
    assert downloads <= misses

# SPDX-License-Identifier: Apache-2.0
"""Which shards a machine downloads next, and which it deletes for them: a pure function of who needs what next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass


@dataclass(frozen=True)
class CachePlan:
    """Shards by number: to download, the most urgent first, and to delete before."""

    fetch: list[int]
    evict: list[int]


def plan_cache(
    sizes: Sequence[int],
    *,
    present: Set[int],
    loading: Set[int],
    orders: Iterable[Sequence[int]],
    awaited: Set[int],
    limit: int,
) -> CachePlan:
    """Return what to do so that the shards that are used next are there.

    sizes    bytes of each shard
    present  on the disk
    loading  that are being downloaded
    orders   for each rank, the shards in the order in which it uses them next
    awaited  that some process waits for; this counts for what is in no order, such as the very first
    limit    bytes that all of them may take

    What is used last, or not at all, goes first (Belady's rule, which is exact here: the future is known). Nothing is
    deleted unless its place is needed.
    """
    next_use: dict[int, int] = {}
    for order in orders:
        for place, shard in enumerate(order):
            next_use[shard] = min(place, next_use.get(shard, place))
    next_use = dict.fromkeys(awaited, -1) | next_use
    kept: dict[int, None] = {}
    room = limit
    for shard in sorted(next_use, key=lambda shard: (next_use[shard], shard)):
        room -= sizes[shard]
        if room < 0:
            break
        kept[shard] = None
    fetch = [shard for shard in kept if shard not in present and shard not in loading]
    surplus = sum(sizes[shard] for shard in {*present, *loading, *fetch}) - limit
    evict = []
    for shard in sorted(present - kept.keys(), key=lambda shard: (-next_use.get(shard, math.inf), shard)):
        if surplus <= 0:
            break
        evict.append(shard)
        surplus -= sizes[shard]
    while surplus > 0 and fetch:  # downloads that nobody needs any more still take their place
        surplus -= sizes[fetch.pop()]
    return CachePlan(fetch, evict)

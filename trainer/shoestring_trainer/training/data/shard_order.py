# SPDX-License-Identifier: Apache-2.0
"""The order of streamed samples: a function of (seed, epoch), in which a few shards at a time are enough.

Shards are shuffled, and cut into even windows of up to SHUFFLED_TOGETHER; the samples of each window are shuffled.
Preparation has shuffled all images over the shards, so a window holds images of all classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from shoestring_trainer.training.data.shard_list import SHUFFLED_TOGETHER
from shoestring_trainer.training.randomness import generator


@dataclass(frozen=True, order=True)
class Window:
    """Shards that are shuffled together: the `number`-th of an epoch."""

    epoch: int
    number: int


@dataclass(frozen=True)
class ShardOrder:
    """The order of the samples of every epoch. Samples are numbered in the order of their shards.

    counts_S           how many samples each shard has, int64; 0 for those of validation images
    samples_per_epoch  the first samples of each order are an epoch
    """

    seed: int
    counts_S: Tensor
    samples_per_epoch: int

    @cached_property
    def first_shard(self) -> int:
        """The shard of sample 0."""
        return int(self._shards[0])

    @cached_property
    def _shards(self) -> Tensor:
        return self.counts_S.nonzero().flatten()

    @cached_property
    def _windows(self) -> int:
        return math.ceil(len(self._shards) / SHUFFLED_TOGETHER)

    @cached_property
    def _window_sizes(self) -> Tensor:
        """How many shards each window has."""
        ends = torch.arange(self._windows + 1) * len(self._shards) // self._windows
        return ends.diff()

    def epoch(self, epoch: int) -> Tensor:
        """Return the samples of an epoch in their order, int32."""
        window_S = torch.empty(len(self.counts_S), dtype=torch.int32)
        window_S[self.shards(epoch)] = torch.arange(self._windows, dtype=torch.int32).repeat_interleave(
            self._window_sizes
        )
        window_N = window_S.repeat_interleave(self.counts_S)
        random_N = torch.randperm(len(window_N), generator=generator(self.seed, "order", epoch), dtype=torch.int32)
        return random_N[window_N.index_select(0, random_N).argsort(stable=True)]

    def shards(self, epoch: int) -> Tensor:
        """Return the shards in the order in which an epoch uses them."""
        shards: Tensor = self._shards[
            torch.randperm(len(self._shards), generator=generator(self.seed, "shards", epoch))
        ]
        return shards

    def windows(self, start: int, size: int) -> list[Window]:
        """Return the windows of `size` samples from position `start` of the stream of epochs."""
        found: list[Window] = []
        for epoch, first, last in self._spans(start, start + size):
            ends = self._window_ends(epoch)
            numbers = torch.searchsorted(ends, torch.tensor([first, last - 1]), right=True).tolist()
            found += [Window(epoch, number) for number in range(numbers[0], numbers[1] + 1)]
        return found

    def window_shards(self, window: Window) -> list[int]:
        """Return the shards of a window."""
        shards: list[int] = self.shards(window.epoch).split(self._window_sizes.tolist())[window.number].tolist()
        return shards

    def upcoming(self, window: Window) -> list[int]:
        """Return the shards from a window on to the end of its epoch."""
        shards: list[int] = self.shards(window.epoch)[int(self._window_sizes[: window.number].sum()) :].tolist()
        return shards

    def _window_ends(self, epoch: int) -> Tensor:
        """Return the position in an epoch at which each of its windows ends."""
        counts = self.counts_S[self.shards(epoch)]
        return counts.cumsum(0)[self._window_sizes.cumsum(0) - 1]

    def _spans(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        while start < end:
            epoch, first = divmod(start, self.samples_per_epoch)
            last = min(self.samples_per_epoch, first + end - start)
            yield epoch, first, last
            start += last - first

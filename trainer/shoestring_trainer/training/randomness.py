# SPDX-License-Identifier: Apache-2.0
"""Random numbers as functions of names: (seed, epoch, sample) for data, (seed, step) for the network.

So no random state is ever saved: the step number determines it, at any world size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring_trainer.training.upload import upload

CPU = torch.device("cpu")
DRAWS_PER_SAMPLE = 8
FLIP = 5
"""Which of a sample's draws decides whether it is flipped (below one half)."""


def derive_seed(seed: int, *names: int | str) -> int:
    """Return a well-mixed 63-bit seed for these names."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, *names: int | str) -> torch.Generator:
    """Return a CPU generator that depends on these names alone."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


def seed_dropout(seed: int, step: int, device: torch.device) -> None:
    """Seed the dropout masks of this step: the same on all ranks, for the global batch (`global_batch_layers`)."""
    number = derive_seed(seed, "dropout", step)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(number)


def more_draws(draws_N2: Tensor, count: int) -> Tensor:
    """Return `count` more uniform draws for each row of two: their hash, by SplitMix64 (S. Vigna, 2015)."""
    high_N, low_N = (draws_N2 * 2**24).long().unbind(1)  # torch.rand's floats have 24 bits
    steps_K = torch.arange(1, count + 1, device=draws_N2.device) * _as_int64(0x9E3779B97F4A7C15)
    hash_NK = ((high_N << 24) | low_N)[:, None] + steps_K
    hash_NK = (hash_NK ^ _shift_right(hash_NK, 30)) * _as_int64(0xBF58476D1CE4E5B9)
    hash_NK = (hash_NK ^ _shift_right(hash_NK, 27)) * _as_int64(0x94D049BB133111EB)
    hash_NK = hash_NK ^ _shift_right(hash_NK, 31)
    return _shift_right(hash_NK, 40).to(draws_N2.dtype) / 2**24


def _as_int64(bits: int) -> int:
    """Return the signed number of these 64 bits."""
    return bits - (bits >> 63 << 64)


def _shift_right(numbers: Tensor, bits: int) -> Tensor:
    """Shift int64 without copying the sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


@dataclass(frozen=True)
class Samples:
    """Samples, and their uniform draws in [0, 1) for augmentation.

    ids_N         on the CPU, as are `host_draws_NK`
    device_ids_N  the same on the device, as are `draws_NK`
    """

    ids_N: Tensor
    device_ids_N: Tensor
    draws_NK: Tensor
    host_draws_NK: Tensor

    def split(self, parts: int) -> list[Samples]:
        """Split into this many parts of about the same size."""
        if parts == 1:
            return [self]
        columns = (
            column.tensor_split(parts) for column in (self.ids_N, self.device_ids_N, self.draws_NK, self.host_draws_NK)
        )
        return [Samples(*columns_of_part) for columns_of_part in zip(*columns, strict=True)]


@dataclass(frozen=True)
class RankSamples(Samples):
    """The samples that a rank trains on in one step.

    spans  the same samples by epoch: epoch, position of the first in the epoch's order, ids
    """

    spans: list[tuple[int, int, Tensor]]


@dataclass(frozen=True)
class Epoch:
    """The order of an epoch's samples, and each sample's draws. Both are copied to the device once."""

    order_N: Tensor
    device_order_N: Tensor
    draws_NK: Tensor
    host_draws_NK: Tensor


class DistributedSampler:
    """An endless stream of samples: epoch after epoch, each a new permutation, shared among the ranks.

    Each step takes the next batch from the stream, so every batch is full, an epoch has each sample once, and a batch
    may hold the end of one epoch and the start of the next. Ranks share a batch as evenly as possible.

    samples_per_epoch  length of an epoch, the first samples of each permutation; None: all
    alternating_flip   whether a sample is flipped is drawn once and alternates from epoch to epoch
    draws              numbers drawn for each sample and epoch
    order              returns the order of an epoch's samples; None: any permutation
    device             where the samples are used
    """

    def __init__(
        self, seed: int, samples: int, rank: int, world_size: int,
        *, samples_per_epoch: int | None = None, alternating_flip: bool = False, draws: int = DRAWS_PER_SAMPLE,
        device: torch.device = CPU, order: Callable[[int], Tensor] | None = None,
    ) -> None:  # fmt: skip
        self._seed, self._samples, self._rank, self._world_size = seed, samples, rank, world_size
        self._samples_per_epoch, self._alternating_flip = samples_per_epoch or samples, alternating_flip
        self._draws, self._device, self._order = draws, device, order
        self._epochs: dict[int, Epoch] = {}
        self._peeked: dict[tuple[int, int], RankSamples] = {}

    def peek(self, start: int, size: int) -> RankSamples:
        """Return what `batch` will return, and keep it until then: loaders look ahead of the step."""
        samples = self._peeked[start, size] = self._share(start, size)
        return samples

    def batch(self, start: int, size: int) -> RankSamples:
        """Return this rank's share of the `size` samples from position `start` of the stream."""
        return self._peeked.pop((start, size), None) or self._share(start, size)

    def _share(self, start: int, size: int) -> RankSamples:
        first, end = size * self._rank // self._world_size, size * (self._rank + 1) // self._world_size
        spans, parts = [], []
        for number, start_in_epoch, end_in_epoch in self._spans(start + first, start + end):
            epoch = self._epoch(number)
            ids_N = epoch.order_N[start_in_epoch:end_in_epoch]
            device_ids_N = epoch.device_order_N[start_in_epoch:end_in_epoch]
            spans.append((number, start_in_epoch, ids_N))
            host_draws_NK = epoch.host_draws_NK[ids_N]
            draws_NK = host_draws_NK if self._device == CPU else epoch.draws_NK[device_ids_N]
            parts.append((ids_N, device_ids_N, draws_NK, host_draws_NK))
            self._epochs = {number: epoch}  # of a large data set, two would fill the memory
        if len(parts) == 1:
            return RankSamples(*parts[0], spans)
        ids_N, device_ids_N, draws_NK, host_draws_NK = (torch.cat(column) for column in zip(*parts, strict=True))
        return RankSamples(ids_N, device_ids_N, draws_NK, host_draws_NK, spans)

    def _spans(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the epochs from `start` to `end` of the stream, with the positions in each."""
        while start < end:
            epoch, first = divmod(start, self._samples_per_epoch)
            last = min(self._samples_per_epoch, first + end - start)
            yield epoch, first, last
            start += last - first

    def _epoch(self, epoch: int) -> Epoch:
        if epoch not in self._epochs:
            order = (
                self._order(epoch)
                if self._order
                else torch.randperm(self._samples, generator=generator(self._seed, "order", epoch))
            )
            draws = torch.rand(self._samples, self._draws, generator=generator(self._seed, "augment", epoch))
            if self._alternating_flip:
                once = torch.rand(self._samples, generator=generator(self._seed, "flip"))
                draws[:, FLIP] = (once + 0.5 * (epoch % 2)) % 1
            self._epochs[epoch] = Epoch(order, upload(order, self._device), upload(draws, self._device), draws)
        return self._epochs[epoch]

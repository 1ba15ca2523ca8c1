# SPDX-License-Identifier: Apache-2.0
"""Random numbers as functions of names: (seed, epoch, sample) for data, (seed, step) for the network.

So no random state is ever saved: the step number determines it, at any world size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring_trainer.training.upload import upload

CPU = torch.device("cpu")
DRAWS_PER_SAMPLE = 8
FLIP = 5
"""Which of a sample's draws decides whether it is flipped (below one half)."""
BLOCK = 1 << 16
"""Samples whose draws are made at a time, of which only some are kept."""


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

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.ids_N, self.device_ids_N, self.draws_NK, self.host_draws_NK

    def split(self, parts: int) -> list[Samples]:
        """Split into this many parts of about the same size."""
        if parts == 1:
            return [self]
        columns = (column.tensor_split(parts) for column in self.columns)
        return [Samples(*columns_of_part) for columns_of_part in zip(*columns, strict=True)]


@dataclass(frozen=True)
class RankSamples(Samples):
    """The samples that a rank trains on in one step.

    spans  the same samples by epoch: epoch, position of the first in the epoch's order, ids
    """

    spans: list[tuple[int, int, Tensor]]


@dataclass(frozen=True)
class Epoch:
    """The order of an epoch's samples, and those of each sample's draws that are kept; copied to the device once."""

    order_N: Tensor
    device_order_N: Tensor
    draws_NU: Tensor
    host_draws_NU: Tensor


class DistributedSampler:
    """An endless stream of samples: epoch after epoch, each a new permutation, shared among the ranks.

    Each step takes the next batch from the stream, so every batch is full, an epoch has each sample once, and a batch
    may hold the end of one epoch and the start of the next. Ranks share a batch as evenly as possible.

    samples_per_epoch  length of an epoch, the first samples of each permutation; None: all
    alternating_flip   whether a sample is flipped is drawn once and alternates from epoch to epoch
    draws              numbers drawn for each sample and epoch
    kept_draws         those of them that are kept; the others read as 0. Data sets of so many images that an epoch's
                       draws would fill the memory keep what they use. None: all
    order              returns the order of an epoch's samples, in any integer type; None: any permutation
    device             where the samples are used
    """

    def __init__(
        self, seed: int, samples: int, rank: int, world_size: int,
        *, samples_per_epoch: int | None = None, alternating_flip: bool = False, draws: int = DRAWS_PER_SAMPLE,
        kept_draws: Sequence[int] | None = None, device: torch.device = CPU,
        order: Callable[[int], Tensor] | None = None,
    ) -> None:  # fmt: skip
        self._seed, self._samples, self._rank, self._world_size = seed, samples, rank, world_size
        self._samples_per_epoch, self._alternating_flip = samples_per_epoch or samples, alternating_flip
        self._draws, self._device, self._order = draws, device, order or self._permutation
        self._kept_U = None if kept_draws is None else torch.tensor(kept_draws, dtype=torch.int64)
        self._flip = FLIP if kept_draws is None else list(kept_draws).index(FLIP) if alternating_flip else -1
        self._device_kept_U = None if self._kept_U is None else upload(self._kept_U, device)
        self._latest: tuple[int, Epoch] | None = None
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
        parts = [self._part(*span) for span in self._spans(start + first, start + end)]
        if len(parts) == 1:
            return parts[0]
        spans = [span for part in parts for span in part.spans]
        columns = zip(*(part.columns for part in parts), strict=True)
        ids_N, device_ids_N, draws_NK, host_draws_NK = (torch.cat(column) for column in columns)
        return RankSamples(ids_N, device_ids_N, draws_NK, host_draws_NK, spans)

    def _spans(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the epochs from `start` to `end` of the stream, with the positions in each."""
        while start < end:
            epoch, first = divmod(start, self._samples_per_epoch)
            last = min(self._samples_per_epoch, first + end - start)
            yield epoch, first, last
            start += last - first

    def _part(self, number: int, start: int, end: int) -> RankSamples:
        """Return the samples from `start` to `end` of an epoch."""
        epoch = self._epoch(number)
        ids_N, device_ids_N = epoch.order_N[start:end].long(), epoch.device_order_N[start:end].long()
        host_draws_NK = draws_NK = _with_zeros(epoch.host_draws_NU[ids_N], self._kept_U, self._draws)
        if self._device != CPU:
            draws_NK = _with_zeros(epoch.draws_NU[device_ids_N], self._device_kept_U, self._draws)
        return RankSamples(ids_N, device_ids_N, draws_NK, host_draws_NK, [(number, start, ids_N)])

    def _epoch(self, number: int) -> Epoch:
        if self._latest is None or self._latest[0] != number:
            self._latest = None  # of a large data set, two would fill the memory
            order, draws = self._order(number), self._draw(number)
            epoch = Epoch(order, self._upload(order), self._upload(draws), draws)
            self._latest = number, epoch
        return self._latest[1]

    def _permutation(self, epoch: int) -> Tensor:
        width = torch.int64 if self._kept_U is None else torch.int32
        return torch.randperm(self._samples, generator=generator(self._seed, "order", epoch), dtype=width)

    def _draw(self, epoch: int) -> Tensor:
        """Return the draws that are kept of each sample."""
        drawn = generator(self._seed, "augment", epoch)
        if self._kept_U is None:
            draws = torch.rand(self._samples, self._draws, generator=drawn)
        else:
            draws = torch.empty(self._samples, len(self._kept_U))
            for block in draws.split(BLOCK):
                block.copy_(torch.rand(len(block), self._draws, generator=drawn)[:, self._kept_U])
        if self._alternating_flip:
            once = torch.rand(self._samples, generator=generator(self._seed, "flip"))
            draws[:, self._flip] = (once + 0.5 * (epoch % 2)) % 1
        return draws

    def _upload(self, host: Tensor) -> Tensor:
        """Return a copy on the device; of a large one, no second is pinned on the host."""
        if self._kept_U is None or self._device == CPU:
            return upload(host, self._device)
        return torch.cat([upload(block, self._device) for block in host.split(BLOCK)])


def _with_zeros(draws_NU: Tensor, kept_U: Tensor | None, count: int) -> Tensor:
    """Return all draws of some samples, of which `kept_U` are given and the others 0."""
    return draws_NU if kept_U is None else draws_NU.new_zeros(len(draws_NU), count).index_copy_(1, kept_U, draws_NU)

# SPDX-License-Identifier: Apache-2.0
"""Every random draw as a function of names: (seed, epoch, sample) for data, (seed, step) for the network.

So no random state is ever saved: the step number says it all, whatever the world size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DRAWS_PER_SAMPLE = 8
FLIP = 5
"""Which of a sample's draws decides whether it is flipped (below one half)."""


def key(seed: int, *names: int | str) -> int:
    """A well-mixed 63-bit number for these names."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, *names: int | str) -> torch.Generator:
    """A CPU generator that depends on nothing but these names."""
    return torch.Generator().manual_seed(key(seed, *names))


def seed_dropout(seed: int, step: int, device: torch.device) -> None:
    """Fix what dropout draws in this step. Ranks draw alike, for the whole batch (`global_batch_layers`)."""
    number = key(seed, "dropout", step)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(number)


@dataclass(frozen=True)
class BatchIndices:
    """Which samples a rank trains on in one step, and their uniform draws in [0, 1) for augmentation.

    spans  the same samples as they lie in the stream: epoch, place of the first in its order, samples
    """

    samples_N: Tensor
    draws_NK: Tensor
    spans: list[tuple[int, int, Tensor]]

    def split(self, parts: int) -> list[tuple[Tensor, Tensor]]:
        """The samples and their draws in so many parts of like size."""
        return list(zip(self.samples_N.tensor_split(parts), self.draws_NK.tensor_split(parts), strict=True))


class SampleOrder:
    """The endless stream of samples: epoch after epoch, each a fresh permutation.

    Steps take one batch after another from the stream, so every step is full, an epoch sees each sample once, and a
    batch may hold the end of one epoch and the start of the next. Ranks share a batch as evenly as it goes.

    epoch_samples     so many samples of each permutation are an epoch; None: all
    alternating_flip  whether a sample is flipped is drawn once and changes from epoch to epoch
    draws             numbers drawn for each sample and epoch
    """

    def __init__(
        self, seed: int, samples: int, rank: int, world: int,
        *, epoch_samples: int | None = None, alternating_flip: bool = False, draws: int = DRAWS_PER_SAMPLE,
    ) -> None:  # fmt: skip
        self._seed, self._samples, self._rank, self._world = seed, samples, rank, world
        self._epoch_samples, self._alternating_flip = epoch_samples or samples, alternating_flip
        self._draws = draws
        self._epochs: dict[int, tuple[Tensor, Tensor]] = {}

    def pick(self, start: int, batch: int) -> BatchIndices:
        """This rank's share of the `batch` samples from place `start` of the stream."""
        first, end = batch * self._rank // self._world, batch * (self._rank + 1) // self._world
        parts = list(self._spans(start + first, start + end))
        spans, draws = [part[:3] for part in parts], [part[3] for part in parts]
        if len(parts) == 1:
            return BatchIndices(spans[0][2], draws[0], spans)
        return BatchIndices(torch.cat([samples for _, _, samples in spans]), torch.cat(draws), spans)

    def _spans(self, start: int, end: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        while start < end:
            epoch, first = divmod(start, self._epoch_samples)
            last = min(self._epoch_samples, first + end - start)
            order, draws = self._epoch(epoch)
            samples = order[first:last]
            yield epoch, first, samples, draws[samples]
            start += last - first

    def _epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        if epoch not in self._epochs:
            self._epochs = {known: self._epochs[known] for known in self._epochs if known == epoch - 1}
            order = torch.randperm(self._samples, generator=generator(self._seed, "order", epoch))
            draws = torch.rand(self._samples, self._draws, generator=generator(self._seed, "augment", epoch))
            if self._alternating_flip:
                once = torch.rand(self._samples, generator=generator(self._seed, "flip"))
                draws[:, FLIP] = (once + 0.5 * (epoch % 2)) % 1
            self._epochs[epoch] = order, draws
        return self._epochs[epoch]

# SPDX-License-Identifier: Apache-2.0
"""Processes that decode images ahead of the training step, in the order in which steps take them.

They are forked before the process group exists and before OpenMP has started threads: neither survives a fork.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Any

import numpy.random  # noqa: F401 - once, before the fork: each process of a loader would import it by itself
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shoestring_trainer.processes import die_with_parent
from shoestring_trainer.training.data.shard_reader import Chunk, ShardReader
from shoestring_trainer.training.data.stalls import InputStalls
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.upload import upload

CHUNK_SIZE = 16
"""Images that a process decodes at a time."""

Decoded = tuple[Tensor | str, float]
"""Images or the error message, and the seconds that their decoder waited for shards."""


class DecodeWorkers:
    """A pool of processes with one stream of chunks at a time. A new stream ends the one before.

    ahead  images to decode ahead of what is taken
    pin    return pinned memory, from which a GPU copies without waiting
    """

    def __init__(self, reader: ShardReader, processes: int, *, ahead: int, pin: bool) -> None:
        self._chunks = _Chunks()
        self._loader: DataLoader[Any] = DataLoader(
            _Decoder(reader), batch_size=None, sampler=self._chunks, num_workers=processes, pin_memory=pin,
            collate_fn=_as_it_is, prefetch_factor=max(2, math.ceil(ahead / (CHUNK_SIZE * processes))),
            persistent_workers=True, multiprocessing_context="fork", worker_init_fn=_Begin(os.getpid()),
        )  # fmt: skip
        self._processes: Any = iter(self._loader)  # forks the processes, which wait for the first stream

    def stream(self, chunks: Iterable[Chunk]) -> ImageStream:
        """Begin to decode these chunks."""
        self._chunks.upcoming = iter(chunks)
        return ImageStream(iter(self._loader))

    def close(self) -> None:
        """End the processes. Nothing can be decoded afterwards.

        Without this the interpreter never ends: multiprocessing sends SIGTERM, which they ignore, and waits for them.
        """
        self._processes._shutdown_workers()  # the loader has no public way


class ImageStream:
    """Decoded images, in order."""

    def __init__(self, decoded: Iterator[Decoded]) -> None:
        self._decoded = decoded
        self._rest_NHWC = torch.empty(0, 0, 0, 3, dtype=torch.uint8)

    def take(self, count: int, device: torch.device, stalls: InputStalls) -> Tensor:
        """Return the next `count` images on the device, uint8 NCHW; they must be of one size. Add what it waits for.

        Raises DataError for one that can't be decoded.
        """
        parts: list[Tensor] = []
        while count:
            if not len(self._rest_NHWC):
                began = monotonic()
                decoded, downloading_s = next(self._decoded)
                stalls.add_take(began, downloading_s)
                if isinstance(decoded, str):
                    raise DataError(decoded)
                self._rest_NHWC = decoded
            part, self._rest_NHWC = self._rest_NHWC[:count], self._rest_NHWC[count:]
            began = monotonic()
            parts.append(upload(part, device))
            stalls.upload_s += monotonic() - began
            count -= len(part)
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).permute(0, 3, 1, 2)


class _Chunks:
    """What the processes decode next: the loader iterates over this once for each stream."""

    def __init__(self) -> None:
        self.upcoming: Iterator[Chunk] = iter(())

    def __iter__(self) -> Iterator[Chunk]:
        return self.upcoming


class _Decoder(Dataset[Any]):
    """What the processes run. An error is returned as text: the loader would add its own to the message."""

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader

    def __getitem__(self, chunk: Chunk) -> Decoded:
        self._reader.waited_s = 0.0
        try:
            return self._reader.decode(chunk), self._reader.waited_s
        except DataError as error:
            return str(error), self._reader.waited_s


class _Begin:
    """Make a fork of a rank a process that ends with it, and is not what the rank's signals are for."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __call__(self, _worker: int) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        die_with_parent(self._rank)


def _as_it_is(decoded: Any) -> Any:
    return decoded

# SPDX-License-Identifier: Apache-2.0
"""Which samples each rank used in each step: a binary log per rank in the run's folder. Free of torch.

A log is one line of JSON and then records of little-endian int32: step, epoch, position of the first sample in the
epoch's order, count, and the sample ids. A record is written before its step is done, so it is there for a lost machine
too. The step number is negative where the batch was skipped. `python -m shoestring_trainer samples` checks the logs.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FILE_NAME = "samples-rank{}.bin"


class SampleLog:
    """Writes one rank's log. Raises OSError if the disk refuses."""

    def __init__(self, folder: Path, **header: int) -> None:
        """header: generation, rank, world_size, start (steps done before), samples_per_epoch."""
        self._file = (folder / FILE_NAME.format(header["rank"])).open("wb", buffering=0)
        self._file.write(json.dumps({"format": 1, **header}).encode() + b"\n")

    def log_step(self, step: int, spans: Iterable[tuple[int, int, Tensor]], *, skip: bool = False) -> None:
        """Log the samples of step `step` (counted from 1). A span: epoch, position of the first sample, sample ids.

        skip  the batch is not trained on
        """
        records = bytearray()
        for epoch, first, ids_N in spans:
            head = (-step if skip else step, epoch, first, len(ids_N))
            records += array("i", head).tobytes() + ids_N.int().numpy().tobytes()
        self._file.write(records)


@dataclass(frozen=True)
class RankLog:
    """The log of one rank in one generation: by step, epochs with their sample ids. `skipped`: steps it skipped."""

    generation: int
    rank: int
    world_size: int
    start: int
    samples_per_epoch: int
    steps: dict[int, list[tuple[int, Sequence[int]]]]
    skipped: frozenset[int] = frozenset()


def read_sample_log(path: Path) -> RankLog:
    """Read one rank's log; a record that was cut off when the machine was lost is skipped."""
    with path.open("rb") as file:
        header, content = json.loads(file.readline()), file.read()
    steps: dict[int, list[tuple[int, Sequence[int]]]] = {}
    skipped = set()
    for step, epoch, ids in _records(array("i", content[: len(content) // 4 * 4])):
        steps.setdefault(abs(step), []).append((epoch, ids))
        if step < 0:
            skipped.add(-step)
    return RankLog(
        header["generation"], header["rank"], header["world_size"], header["start"], header["samples_per_epoch"],
        steps, frozenset(skipped),
    )  # fmt: skip


def _records(numbers: array[int]) -> Iterator[tuple[int, int, array[int]]]:
    """Step, epoch and sample ids of each record."""
    start = 0
    while start + 4 <= len(numbers):
        step, epoch, _, count = numbers[start : start + 4]
        ids = numbers[start + 4 : start + 4 + count]
        if len(ids) < count:
            return
        yield step, epoch, ids
        start += 4 + count

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
from typing import TYPE_CHECKING, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError
from shoestring_core.regular_files import open_regular

from shoestring_trainer.training.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FILE_NAME = "samples-rank{}.bin"
MAX_HEADER_BYTES = 4096
MAX_MISSING_STEPS = 10_000
"""Between two records of a log; more of them are a damaged number."""
_HEAD_BYTES = 16


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
    """The log of one rank in one generation: by step, epochs with their sample ids. `skipped`: steps it skipped.

    damage  where the file is damaged, and how; what follows there isn't in `steps`
    """

    generation: int
    rank: int
    world_size: int
    start: int
    samples_per_epoch: int
    steps: dict[int, list[tuple[int, Sequence[int]]]]
    skipped: frozenset[int] = frozenset()
    damage: str = ""


class _Header(BaseModel):
    model_config = ConfigDict(strict=True)

    format: Literal[1]
    generation: NonNegativeInt
    rank: NonNegativeInt
    world_size: PositiveInt
    start: NonNegativeInt
    samples_per_epoch: PositiveInt


def read_sample_log(path: Path) -> RankLog:
    """Read one rank's log; a record that was cut off when the machine was lost is skipped.

    Raises DataError, with the path, for what isn't such a log.
    """
    steps: dict[int, list[tuple[int, Sequence[int]]]] = {}
    skipped = set()
    try:
        with open_regular(path) as file:
            header = _Header.model_validate_json(file.readline(MAX_HEADER_BYTES))
            damage = ""
            try:
                for step, epoch, ids in _records(file, header):
                    steps.setdefault(abs(step), []).append((epoch, ids))
                    if step < 0:
                        skipped.add(-step)
            except ValueError as error:
                damage = f"{path} is damaged: {error}; what follows is left out"
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "its first line"
        raise DataError(f"{path} is not a log of samples of this version ({field}: {first['msg']})") from error
    return RankLog(
        header.generation, header.rank, header.world_size, header.start, header.samples_per_epoch, steps,
        frozenset(skipped), damage,
    )  # fmt: skip


def _records(file: BinaryIO, header: _Header) -> Iterator[tuple[int, int, array[int]]]:
    """Step, epoch and sample ids of each record. Raises ValueError for one that no rank has written."""
    last = header.start
    while len(head := file.read(_HEAD_BYTES)) == _HEAD_BYTES:
        at = file.tell() - _HEAD_BYTES
        step, epoch, first, count = array("i", head)
        if not max(last, 1) <= abs(step) <= last + MAX_MISSING_STEPS:
            raise ValueError(f"step {step} comes after step {last} at byte {at}")
        if epoch < 0 or not 0 <= first <= first + count <= header.samples_per_epoch:
            raise ValueError(
                f"samples {first} to {first + count} of epoch {epoch} at byte {at}, where an epoch has "
                f"{header.samples_per_epoch}"
            )
        content = file.read(4 * count)
        if len(content) < 4 * count:
            return
        ids = array("i", content)
        if count and not 0 <= min(ids) <= max(ids) < header.samples_per_epoch:
            raise ValueError(f"sample {min(ids) if min(ids) < 0 else max(ids)} after byte {at}")
        last = abs(step)
        yield step, epoch, ids

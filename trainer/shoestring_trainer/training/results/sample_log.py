# SPDX-License-Identifier: Apache-2.0
"""Which samples each rank took up in each step: a log in the run's folder, and what the logs of a job say together.

    python -m shoestring_trainer samples FOLDER…

A log is one line of JSON and then records of little-endian int32: step, epoch, place of the first sample in the epoch's
order, count, and the ids. A record is written before its step is done, so what a lost machine trained on is there
too. A step whose batch is passed over, because the numbers broke there before, stands with a minus. Free of torch.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NAME = "samples-rank{}.bin"


class SampleLog:
    """One rank's log. Raises OSError if the disk refuses."""

    def __init__(self, folder: Path, **about: int) -> None:
        """about: generation, rank, world, start (steps done before), samples_per_epoch."""
        self._file = (folder / NAME.format(about["rank"])).open("wb", buffering=0)
        self._file.write(json.dumps({"format": 1, **about}).encode() + b"\n")

    def log_step(self, step: int, spans: Iterable[tuple[int, int, Tensor]], *, skip: bool = False) -> None:
        """This rank begins step `step` (counted from 1). A span: epoch, place of the first sample in its order, ids.

        skip  it learns nothing from them
        """
        records = bytearray()
        for epoch, first, ids_N in spans:
            head = (-step if skip else step, epoch, first, len(ids_N))
            records += array("i", head).tobytes() + ids_N.int().numpy().tobytes()
        self._file.write(records)


@dataclass(frozen=True)
class Share:
    """What one rank of one generation took up: by step, epochs with their ids. `skipped`: steps it passed over."""

    generation: int
    rank: int
    world: int
    start: int
    samples_per_epoch: int
    steps: dict[int, list[tuple[int, Sequence[int]]]]
    skipped: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Generation:
    """Steps first … last are the job's; those after `last` were done again by a later generation."""

    number: int
    world: int
    ranks: int
    first: int
    last: int
    lost: int
    samples: int


@dataclass
class Epoch:
    """How often each sample was met in the steps that count. `faults` says what isn't as it should be.

    skipped  the samples among them that nothing was learned from
    """

    number: int
    expected: int
    met: Counter[int] = field(default_factory=Counter)
    skipped: list[int] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        twice = sorted(sample for sample, times in self.met.items() if times > 1)
        missing = self.expected - len(self.met)
        return [f"met twice: {twice[:5]} ({len(twice)})"] * bool(twice) + [f"{missing} missing"] * (missing > 0)


@dataclass(frozen=True)
class Merged:
    generations: list[Generation]
    epochs: list[Epoch]
    holes: list[str]
    """Ranks whose log lacks a step that counts."""

    @property
    def whole(self) -> bool:
        """Each sample once in every epoch but the last, which may not be over, and there never twice."""
        last = self.epochs[-1:]
        done = [epoch for epoch in self.epochs[:-1] if epoch.faults]
        return not self.holes and not done and all(max(epoch.met.values()) == 1 for epoch in last)


def main(folders: list[str]) -> int:
    """Print what the logs below `folders` say together; 1 if a sample is missing or was met twice."""
    paths = [path for folder in folders for path in Path(folder).glob(f"**/{NAME.format('*')}")]
    if not paths:
        print(
            f"no {NAME.format('*')} below {', '.join(folders) or 'nothing'}: give the folder of a run", file=sys.stderr
        )
        return 2
    merged = merge(read(path) for path in paths)
    for one in merged.generations:
        lost = f", {one.lost} more done again later" if one.lost else ""
        print(
            f"generation {one.number}: {one.ranks} of {one.world} ranks, steps {one.first} to {one.last}, "
            f"{one.samples} samples{lost}"
        )
    for epoch in merged.epochs:
        said = "; ".join(epoch.faults) or "each once"
        passed = f"; passed over, {len(epoch.skipped)}: {sorted(epoch.skipped)}" if epoch.skipped else ""
        print(f"epoch {epoch.number}: {sum(epoch.met.values())} of {epoch.expected} samples, {said}{passed}")
    for hole in merged.holes:
        print(hole)
    return 0 if merged.whole else 1


def read(path: Path) -> Share:
    """One rank's log; a record that was being written when the machine died is left out."""
    with path.open("rb") as file:
        about, content = json.loads(file.readline()), file.read()
    steps: dict[int, list[tuple[int, Sequence[int]]]] = {}
    skipped = set()
    for step, epoch, ids in _records(array("i", content[: len(content) // 4 * 4])):
        steps.setdefault(abs(step), []).append((epoch, ids))
        if step < 0:
            skipped.add(-step)
    place = (about["generation"], about["rank"], about["world"], about["start"], about["samples_per_epoch"])
    return Share(*place, steps, frozenset(skipped))


def merge(shares: Iterable[Share]) -> Merged:
    """What the job trained on: of each step, what the last generation that did it took up.

    A generation goes on after its start; a later one that began earlier takes over everything after its own start.
    """
    by_number: dict[int, list[Share]] = {}
    for share in shares:
        by_number.setdefault(share.generation, []).append(share)
    by_number = {number: ranks for number, ranks in by_number.items() if any(rank.steps for rank in ranks)}
    numbers = sorted(by_number)
    generations: list[Generation] = []
    epochs: dict[int, Epoch] = {}
    holes: list[str] = []
    for place, number in enumerate(numbers):
        ranks = by_number[number]
        begin, reached = ranks[0].start, max(max(rank.steps, default=0) for rank in ranks)
        last = min([reached, *(by_number[later][0].start for later in numbers[place + 1 :])])
        counted = 0
        for rank in ranks:
            if missing := [step for step in range(begin + 1, last + 1) if step not in rank.steps]:
                holes.append(f"generation {number}: rank {rank.rank} lacks steps {missing[:5]} ({len(missing)})")
            for step in range(begin + 1, last + 1):
                for number_of_epoch, ids in rank.steps.get(step, ()):
                    epoch = epochs.setdefault(number_of_epoch, Epoch(number_of_epoch, rank.samples_per_epoch))
                    epoch.met.update(ids)
                    epoch.skipped += ids if step in rank.skipped else ()
                    counted += len(ids)
        if last > begin and len(ranks) < ranks[0].world:
            holes.append(f"generation {number}: the logs of {ranks[0].world - len(ranks)} ranks are not here")
        generations.append(Generation(number, ranks[0].world, len(ranks), begin + 1, last, reached - last, counted))
    holes += [
        f"nobody did the steps between {one.last} and {other.first}"
        for one, other in pairwise(generations)
        if other.first > one.last + 1
    ]
    return Merged(generations, [epochs[number] for number in sorted(epochs)], holes)


def _records(numbers: array[int]) -> Iterator[tuple[int, int, array[int]]]:
    at = 0
    while at + 4 <= len(numbers):
        step, epoch, _, count = numbers[at : at + 4]
        ids = numbers[at + 4 : at + 4 + count]
        if len(ids) < count:
            return
        yield step, epoch, ids
        at += 4 + count

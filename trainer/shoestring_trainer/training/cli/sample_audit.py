# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring_trainer samples`: whether a job trained on each sample once per epoch. Free of torch."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from shoestring_core.terminal_text import printable
from shoestring_core.wording.units import counted

from shoestring_trainer.terminal import escape_unencodable, say
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.results.sample_log import FILE_NAME, RankLog, read_sample_log


@dataclass(frozen=True)
class GenerationSummary:
    """Steps first … last count; the `rolled_back` steps after `last` were recomputed by a later generation."""

    number: int
    world_size: int
    ranks: int
    first: int
    last: int
    rolled_back: int
    samples: int


@dataclass
class EpochCoverage:
    """How often each sample was used in the steps that count.

    skipped  samples among them in batches that were skipped
    """

    number: int
    expected: int
    counts: Counter[int] = field(default_factory=Counter)
    skipped: list[int] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        repeated = sorted(sample for sample, count in self.counts.items() if count > 1)
        missing = self.expected - len(self.counts)
        return [f"repeated: {repeated[:5]} ({len(repeated)})"] * bool(repeated) + [f"{missing} missing"] * (missing > 0)


@dataclass(frozen=True)
class SampleAudit:
    """The merged logs of a job. `gaps`: missing steps and missing logs."""

    generations: list[GenerationSummary]
    epochs: list[EpochCoverage]
    gaps: list[str]

    @property
    def passed(self) -> bool:
        """Each sample once in every epoch but the last, which may be unfinished, and there never twice."""
        last = self.epochs[-1:]
        incomplete = [epoch for epoch in self.epochs[:-1] if epoch.problems]
        return not self.gaps and not incomplete and all(max(epoch.counts.values()) == 1 for epoch in last)


def main(folders: list[str]) -> int:
    """Print the audit of the logs below `folders`; 1 if a sample is missing or repeated, or a log is damaged."""
    escape_unencodable()
    found = (path for folder in folders for path in Path(folder).glob(f"**/{FILE_NAME.format('*')}"))
    paths = sorted({path.resolve(): path for path in found}.values())
    if not paths:
        where = ", ".join(folders) or "nothing"
        sys.stderr.write(f"no {FILE_NAME.format('*')} below {printable(where)}: give the folder of a run\n")
        return 2
    logs, unusable = [], []
    for path in paths:
        try:
            logs.append(read_sample_log(path))
        except DataError as error:
            unusable.append(str(error))
    audit = audit_samples(logs)
    for summary in audit.generations:
        rolled_back = f", {summary.rolled_back} more recomputed later" if summary.rolled_back else ""
        print(
            f"generation {summary.number}: {summary.ranks} of {counted(summary.world_size, 'rank')}, "
            f"steps {summary.first} to {summary.last}, {counted(summary.samples, 'sample')}{rolled_back}"
        )
    for epoch in audit.epochs:
        result = "; ".join(epoch.problems) or "each once"
        skipped = f"; skipped, {len(epoch.skipped)}: {sorted(epoch.skipped)}" if epoch.skipped else ""
        samples = f"{sum(epoch.counts.values())} of {epoch.expected} samples"
        print(f"epoch {epoch.number}: {samples}, {result}{skipped}")
    for gap in (*audit.gaps, *unusable):
        say(gap)
    return 0 if audit.passed and not unusable else 1


def audit_samples(logs: Iterable[RankLog]) -> SampleAudit:
    """Merge the logs of a job: each step counts as the last generation that ran it logged it.

    A generation continues after its start; a later one that began earlier replaces everything after its own start.
    """
    by_generation: dict[int, list[RankLog]] = {}
    gaps: list[str] = []
    for log in logs:
        by_generation.setdefault(log.generation, []).append(log)
        gaps += [log.damage] if log.damage else []
    by_generation = {number: ranks for number, ranks in by_generation.items() if any(rank.steps for rank in ranks)}
    numbers = sorted(by_generation)
    generations: list[GenerationSummary] = []
    epochs: dict[int, EpochCoverage] = {}
    for position, number in enumerate(numbers):
        ranks = by_generation[number]
        start, reached = ranks[0].start, max(max(rank.steps, default=0) for rank in ranks)
        last = min([reached, *(by_generation[later][0].start for later in numbers[position + 1 :])])
        for rank in ranks:
            if missing := [step for step in range(start + 1, last + 1) if step not in rank.steps]:
                gaps.append(f"generation {number}: rank {rank.rank} lacks steps {missing[:5]} ({len(missing)})")
        samples = sum(_count_samples(rank, range(start + 1, last + 1), epochs) for rank in ranks)
        if last > start and len(ranks) < ranks[0].world_size:
            gaps.append(f"generation {number}: without the log of {counted(ranks[0].world_size - len(ranks), 'rank')}")
        summary = GenerationSummary(
            number, ranks[0].world_size, len(ranks), start + 1, last, reached - last, samples
        )  # fmt: skip
        generations.append(summary)
    return SampleAudit(generations, [epochs[number] for number in sorted(epochs)], gaps + _missing_steps(generations))


def _count_samples(rank: RankLog, steps: Iterable[int], epochs: dict[int, EpochCoverage]) -> int:
    """Add the samples of a rank's steps to `epochs`, and return their number."""
    total = 0
    for step in steps:
        for number, ids in rank.steps.get(step, ()):
            epoch = epochs.setdefault(number, EpochCoverage(number, rank.samples_per_epoch))
            epoch.counts.update(ids)
            epoch.skipped += ids if step in rank.skipped else ()
            total += len(ids)
    return total


def _missing_steps(generations: Sequence[GenerationSummary]) -> list[str]:
    return [
        f"no generation ran the steps between {earlier.last} and {later.first}"
        for earlier, later in pairwise(generations)
        if later.first > earlier.last + 1
    ]

# SPDX-License-Identifier: Apache-2.0
"""How long a run takes on a number of machines of one type, from measurements of earlier runs of the same work.

A node count that was measured takes its median. For the others an epoch is modelled as

    t(n) = serial + parallel / n + communication · (n − 1)

seconds. The terms are those of least squared relative error, none below zero; where few measured counts leave a choice,
the one that promises the least speedup for more machines. There is no estimate beyond twice the largest measured count,
nor for any other count while only one is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal
from uuid import UUID

Basis = Literal["measured", "interpolated", "estimated"]

MARGINS: Mapping[Basis, float] = {"measured": 0.10, "interpolated": 0.20, "estimated": 0.30}
"""Added to a time before it is compared with a limit. Assumed: runs of the same job differ by a few per cent."""

MAX_RUNS_PER_COUNT = 5
"""Only this many of the newest runs of a node count are used, so that outdated measurements drop out."""

MAX_EXTRAPOLATION = 2
"""Estimates reach up to this multiple of the largest measured node count."""


@dataclass(frozen=True)
class Measurement:
    """What one generation of an earlier run took on machines of one type; seconds. None: it didn't include that part.

    epochs      how many it trained while it was measured
    epoch_s     training time of one epoch, without evaluation
    evaluation_s      one evaluation on validation images
    boot_s      from the first machine's launch until the ranks start
    startup_s   from there until the first step is done
    finish_s    from the last step to the end of the run: final evaluation, export, checkpoint
    teardown_s  from the end of the run until the last machine has terminated
    complete    it trained from the first step to the last
    """

    job: UUID
    generation: int
    type: str
    nodes: int
    epochs: float
    epoch_s: float
    evaluation_s: float | None
    boot_s: float | None
    startup_s: float | None
    finish_s: float | None
    teardown_s: float | None
    complete: bool


@dataclass(frozen=True)
class Estimate:
    """What a run takes, in seconds.

    run_s            as limits.time counts: from the ranks' start to the end
    run_upper_s      the same with its margin
    rented_s         what each machine is paid for
    fixed_s          the part of run_s before the first step and after the last, which more machines don't shorten
    serial_fraction  the part of an epoch that more machines don't shorten; None if only one count is measured
    boot_s           from the launch of the machines to the ranks' start
    startup_s        from there until the first step is done
    teardown_s       from the end of the run until the machines have terminated
    ratios           how much longer an epoch took than estimated, in each run of this node count; if there is none, on
                     each count that was measured
    """

    basis: Basis
    run_s: float
    run_upper_s: float
    rented_s: float
    fixed_s: float
    serial_fraction: float | None
    boot_s: float
    startup_s: float
    teardown_s: float
    ratios: tuple[float, ...]

    @property
    def margin_s(self) -> float:
        return self.run_upper_s - self.run_s


class ScalingModel:
    """Estimates for one type of machine. `measurements` are of that type and of the same work, newest first."""

    def __init__(self, measurements: Iterable[Measurement]) -> None:
        self.runs: dict[int, list[Measurement]] = {}
        for measurement in measurements:
            if len(of_count := self.runs.setdefault(measurement.nodes, [])) < MAX_RUNS_PER_COUNT:
                of_count.append(measurement)
        self._epochs = {nodes: statistics.median(run.epoch_s for run in runs) for nodes, runs in self.runs.items()}
        self._fit = fit_epoch_times(self._epochs) if len(self._epochs) > 1 else None

    @property
    def node_counts(self) -> list[int]:
        """The numbers of machines that can be estimated."""
        if self._fit is None:
            return list(self.runs)
        return list(range(1, MAX_EXTRAPOLATION * max(self.runs) + 1))

    def estimate(self, nodes: int, epochs: float, evaluations: int) -> Estimate | None:
        """For one of `node_counts`, with `evaluations` before the end; None if no evaluation was ever measured."""
        evaluation_s = self._median(nodes, lambda run: run.evaluation_s)
        if evaluations and evaluation_s is None:
            return None
        startup_s = self._median(nodes, lambda run: run.startup_s) or 0.0
        finish_s = self._median(nodes, lambda run: run.finish_s)
        fixed_s = startup_s + (finish_s or 0.0)
        run_s = fixed_s + epochs * self._epoch_s(nodes) + evaluations * (evaluation_s or 0.0)
        basis: Basis = self._basis(nodes) if finish_s is not None else "estimated"
        boot_s = self._median(nodes, lambda run: run.boot_s) or 0.0
        teardown_s = self._median(nodes, lambda run: run.teardown_s) or 0.0
        return Estimate(
            basis=basis,
            run_s=run_s,
            run_upper_s=run_s * (1 + self._margin(nodes, basis)),
            rented_s=run_s + boot_s + teardown_s,
            fixed_s=fixed_s,
            serial_fraction=self._fit.serial_fraction(nodes) if self._fit else None,
            boot_s=boot_s,
            startup_s=startup_s,
            teardown_s=teardown_s,
            ratios=tuple(self._ratios(nodes)),
        )

    def _ratios(self, nodes: int) -> Iterable[float]:
        if nodes in self.runs:
            return (run.epoch_s / self._epochs[nodes] for run in self.runs[nodes])
        assert self._fit is not None
        model = ((self._fit.seconds(count), measured) for count, measured in self._epochs.items())
        return (measured / max(estimated, measured / 10) for estimated, measured in model)  # a bad fit can estimate 0

    def _epoch_s(self, nodes: int) -> float:
        if nodes in self._epochs:
            return self._epochs[nodes]
        assert self._fit is not None
        fewest = min(self._epochs)
        # Fewer machines than were ever measured are never estimated to be faster.
        return max(self._fit.seconds(nodes), self._epochs[fewest] if nodes < fewest else 0.0)

    def _basis(self, nodes: int) -> Basis:
        if nodes in self.runs:
            return "measured"
        return "interpolated" if min(self.runs) < nodes < max(self.runs) else "estimated"

    def _margin(self, nodes: int, basis: Basis) -> float:
        """At least the margin of the basis; more if the slowest run of this count, or the model's error, exceeds it."""
        if nodes in self.runs:
            error = max(run.epoch_s for run in self.runs[nodes]) / self._epochs[nodes] - 1
        else:
            assert self._fit is not None
            error = max(abs(self._fit.seconds(count) / measured - 1) for count, measured in self._epochs.items())
        return max(MARGINS[basis], error)

    def _median(self, nodes: int, part: Callable[[Measurement], float | None]) -> float | None:
        """Of a part of the runs of this count, or of the nearest count that has it; of two, the larger."""
        values = {
            count: [value for run in runs if (value := part(run)) is not None] for count, runs in self.runs.items()
        }
        medians = {count: statistics.median(measured) for count, measured in values.items() if measured}
        nearest = min(medians, key=lambda count: (abs(count - nodes), -count), default=None)
        return None if nearest is None else medians[nearest]


@dataclass(frozen=True)
class EpochTimeModel:
    """Seconds: serial + parallel / n + communication · (n − 1)."""

    serial: float
    parallel: float
    communication: float

    def seconds(self, nodes: int) -> float:
        return self.serial + self.parallel / nodes + self.communication * (nodes - 1)

    def serial_fraction(self, nodes: int) -> float:
        serial, total = self.serial + self.communication * (nodes - 1), self.seconds(nodes)
        return serial / total if total else 0.0


def fit_epoch_times(seconds: Mapping[int, float]) -> EpochTimeModel:
    """The model of least squared relative error. Seconds by number of machines, none zero."""

    def fit_error(model: EpochTimeModel) -> tuple[float, float]:
        error = sum((model.seconds(nodes) / measured - 1) ** 2 for nodes, measured in seconds.items())
        return round(error, 9), -model.seconds(MAX_EXTRAPOLATION * max(seconds))

    # The best fit without negative terms is the best one of a subset of the terms: there are seven subsets.
    subsets = [subset for size in (1, 2, 3) for subset in combinations(range(3), size)]
    fits = [model for subset in subsets if (model := _least_squares(seconds, subset)) is not None]
    return min(fits, key=fit_error)


def _least_squares(seconds: Mapping[int, float], terms: Sequence[int]) -> EpochTimeModel | None:
    """With these of the three terms only; None if they are not determined, or one would be negative."""
    rows = [[(1.0, 1 / nodes, nodes - 1.0)[term] / measured for term in terms] for nodes, measured in seconds.items()]
    square = [[sum(row[i] * row[j] for row in rows) for j in range(len(terms))] for i in range(len(terms))]
    solution = _solve(square, [sum(row[i] for row in rows) for i in range(len(terms))])
    if solution is None or min(solution) < 0:
        return None
    by_term = dict(zip(terms, solution, strict=True))
    return EpochTimeModel(*(by_term.get(term, 0.0) for term in range(3)))


def _solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """x with matrix · x = right, by elimination (semidefinite: no pivots); None if there is no unique solution."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i, row in enumerate(rows):
        if row[i] < 1e-12 * matrix[i][i] or row[i] <= 0:
            return None
        for other in rows[:i] + rows[i + 1 :]:
            factor = other[i] / row[i]
            other[:] = [b - factor * a for a, b in zip(row, other, strict=True)]
    return [row[-1] / row[i] for i, row in enumerate(rows)]

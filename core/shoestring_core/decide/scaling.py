# SPDX-License-Identifier: Apache-2.0
"""How long a training takes on a number of machines of one type, from what earlier runs of the same work took.

A count that was measured takes what it took. For the others an epoch takes t(n) = own + shared / n + exchange · (n − 1)
seconds: what every machine does alike, what they share out, and what they tell each other. The terms are those of least
relative error (squares), none below zero; where few counts leave a choice, the one that promises least for more
machines. Nothing is said about more than twice the largest count, nor about any other count while only one is known.
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
"""Added to a time before it is held against a limit. Assumed: two runs of one job differ by some per cent."""

NEWEST = 5
"""So many runs of a count are looked at, so that what a machine was once is forgotten."""

REACH = 2
"""Beyond the largest count that was measured, up to so many times as many are estimated."""


@dataclass(frozen=True)
class Measurement:
    """What one generation of an earlier run took on machines of one type; seconds. None: not seen in it.

    epochs        how many it trained while it was measured
    epoch_s       training time of one, without evaluation
    evaluation_s  one evaluation on held-out pictures
    boot_s        from the first machine's launch until the ranks start
    start_s       from there until the first step is done
    end_s         from the last step to the end of the run: final evaluation, export, checkpoint
    leave_s       from the end of the run until the last machine is terminated
    whole         it trained from the first step to the last
    """

    job: UUID
    generation: int
    type: str
    nodes: int
    epochs: float
    epoch_s: float
    evaluation_s: float | None
    boot_s: float | None
    start_s: float | None
    end_s: float | None
    leave_s: float | None
    whole: bool


@dataclass(frozen=True)
class Estimate:
    """What a run takes, in seconds.

    run_s      as limits.time counts: from the ranks' start to the end
    sure_s     the same with its margin
    rented_s   what each machine is paid for
    fixed_s    the part of run_s that no number of machines shortens: before the first step and after the last
    unshared   the share of an epoch that more machines don't shorten either; None if only one count is known
    """

    basis: Basis
    run_s: float
    sure_s: float
    rented_s: float
    fixed_s: float
    unshared: float | None


class Scaling:
    """What is known of one type of machine. `measurements` are of it and of one work, the newest first."""

    def __init__(self, measurements: Iterable[Measurement]) -> None:
        self.runs: dict[int, list[Measurement]] = {}
        for one in measurements:
            if len(of_count := self.runs.setdefault(one.nodes, [])) < NEWEST:
                of_count.append(one)
        self._epochs = {nodes: statistics.median(one.epoch_s for one in runs) for nodes, runs in self.runs.items()}
        self._fit = fit(self._epochs) if len(self._epochs) > 1 else None

    @property
    def counts(self) -> list[int]:
        """The numbers of machines about which something is known."""
        if self._fit is None:
            return list(self.runs)
        return list(range(1, REACH * max(self.runs) + 1))

    def estimate(self, nodes: int, epochs: float, evaluations: int) -> Estimate | None:
        """The time of `epochs` with `evaluations` on `counts`; None if there are evaluations and none was measured."""
        evaluation_s = self._usual(nodes, lambda one: one.evaluation_s)
        if evaluations and evaluation_s is None:
            return None
        start_s = self._usual(nodes, lambda one: one.start_s) or 0.0
        end_s = self._usual(nodes, lambda one: one.end_s)
        fixed_s = start_s + (end_s or 0.0)
        run_s = fixed_s + epochs * self._epoch_s(nodes) + evaluations * (evaluation_s or 0.0)
        basis: Basis = self._basis(nodes) if end_s is not None else "estimated"
        around_s = sum(self._usual(nodes, part) or 0.0 for part in (lambda one: one.boot_s, lambda one: one.leave_s))
        return Estimate(
            basis, run_s, run_s * (1 + self._margin(nodes, basis)), run_s + around_s, fixed_s,
            self._fit.unshared(nodes) if self._fit else None,
        )  # fmt: skip

    def _epoch_s(self, nodes: int) -> float:
        if nodes in self._epochs:
            return self._epochs[nodes]
        assert self._fit is not None
        fewest = min(self._epochs)
        # Fewer machines than were ever tried are not said to be faster.
        return max(self._fit.seconds(nodes), self._epochs[fewest] if nodes < fewest else 0.0)

    def _basis(self, nodes: int) -> Basis:
        if nodes in self.runs:
            return "measured"
        return "interpolated" if min(self.runs) < nodes < max(self.runs) else "estimated"

    def _margin(self, nodes: int, basis: Basis) -> float:
        """Beside what is held anyway: the slowest run of this count, or how far the model is off where it was tried."""
        if nodes in self.runs:
            seen = max(one.epoch_s for one in self.runs[nodes]) / self._epochs[nodes] - 1
        else:
            assert self._fit is not None
            seen = max(abs(self._fit.seconds(count) / known - 1) for count, known in self._epochs.items())
        return max(MARGINS[basis], seen)

    def _usual(self, nodes: int, part: Callable[[Measurement], float | None]) -> float | None:
        """The median of a part of the runs of this count, or of the nearest that has it; of two, the larger count."""
        known = {
            count: [value for one in runs if (value := part(one)) is not None] for count, runs in self.runs.items()
        }
        medians = {count: statistics.median(values) for count, values in known.items() if values}
        nearest = min(medians, key=lambda count: (abs(count - nodes), -count), default=None)
        return None if nearest is None else medians[nearest]


@dataclass(frozen=True)
class Fit:
    """Seconds: own + shared / n + exchange · (n − 1)."""

    own: float
    shared: float
    exchange: float

    def seconds(self, nodes: int) -> float:
        return self.own + self.shared / nodes + self.exchange * (nodes - 1)

    def unshared(self, nodes: int) -> float:
        unshared, whole = self.own + self.exchange * (nodes - 1), self.seconds(nodes)
        return unshared / whole if whole else 0.0


def fit(seconds: Mapping[int, float]) -> Fit:
    """The terms that are least off, relative to what was measured. Seconds by number of machines, none zero."""

    def badness(found: Fit) -> tuple[float, float]:
        off = sum((found.seconds(nodes) / known - 1) ** 2 for nodes, known in seconds.items())
        return round(off, 9), -found.seconds(REACH * max(seconds))

    # The best fit without negative terms is the best one of some of the terms: there are seven choices.
    terms = [chosen for size in (1, 2, 3) for chosen in combinations(range(3), size)]
    fits = [found for chosen in terms if (found := _least_squares(seconds, chosen)) is not None]
    return min(fits, key=badness)


def _least_squares(seconds: Mapping[int, float], chosen: Sequence[int]) -> Fit | None:
    """With these of the three terms alone; None if they don't settle it, or one would be negative."""
    rows = [[(1.0, 1 / nodes, nodes - 1.0)[term] / known for term in chosen] for nodes, known in seconds.items()]
    square = [[sum(row[i] * row[j] for row in rows) for j in range(len(chosen))] for i in range(len(chosen))]
    found = _solve(square, [sum(row[i] for row in rows) for i in range(len(chosen))])
    if found is None or min(found) < 0:
        return None
    by_term = dict(zip(chosen, found, strict=True))
    return Fit(*(by_term.get(term, 0.0) for term in range(3)))


def _solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """x with matrix · x = right, by elimination (semidefinite: no pivots); None if there is no single one."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i, row in enumerate(rows):
        if row[i] < 1e-12 * matrix[i][i] or row[i] <= 0:
            return None
        for other in rows[:i] + rows[i + 1 :]:
            factor = other[i] / row[i]
            other[:] = [b - factor * a for a, b in zip(row, other, strict=True)]
    return [row[-1] / row[i] for i, row in enumerate(rows)]

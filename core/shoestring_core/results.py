# SPDX-License-Identifier: Apache-2.0
"""Results of runs, computed from their curves: accuracy by epoch, time and cost to a target, how many seeds reach it.

Two clocks. Training time is what benchmarks count: from the first step on, without evaluation on held-out images,
without the time between machines, and without rolled-back steps. Wall time is what the user waits, from submission on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

EVALUATION_S = "time/evaluation_s"
"""The curve of the seconds that evaluation took in a step's line."""
DOWNLOAD_STALL_S, DECODE_STALL_S, UPLOAD_STALL_S = "stall/download_s", "stall/decode_s", "stall/upload_s"
"""The curves of the seconds in which rank 0 waited for its input since the value before. In a result: all of them."""


@dataclass(frozen=True)
class Curve:
    """One metric of the merged run: rising steps, when each was reported (Unix seconds), and its value."""

    steps: Sequence[int]
    times: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class EpochResult:
    """The result after an epoch. Accuracies are fractions; `score` is the metric that the target is for.

    train_s  training time until then; None if too few lines were written to tell
    wait_s   wall time from submission until then; None if unknown
    """

    epoch: float
    train_s: float | None
    score: float
    top1: float | None = None
    top5: float | None = None
    wait_s: float | None = None


@dataclass(frozen=True)
class RentedMachine:
    """A rented machine: its price, and when it ran (Unix seconds; no end: it still runs)."""

    usd_per_hour: float
    start: float
    end: float | None = None


@dataclass(frozen=True)
class RunResult:
    """One run, ours or a published one, in the form in which runs are compared.

    usd_per_hour  on-demand price of all its hardware; None if unknown
    """

    name: str
    model: str
    hardware: str
    metric: str
    epochs: tuple[EpochResult, ...]
    usd_per_hour: float | None = None
    submitted: float | None = None
    machines: tuple[RentedMachine, ...] = ()

    @property
    def best(self) -> float | None:
        return max((epoch.score for epoch in self.epochs), default=None)

    @property
    def last(self) -> float | None:
        return self.epochs[-1].score if self.epochs else None

    def first_reaching(self, target: float) -> EpochResult | None:
        """The first epoch at or over `target`."""
        return next((epoch for epoch in self.epochs if epoch.score >= target), None)


@dataclass(frozen=True)
class TimeToTarget:
    """The time and cost to reach a target.

    on_demand_usd  training time at the on-demand price, as benchmarks count
    paid_usd       cost of the machines until then, at the prices they were rented for
    """

    epoch: float
    train_s: float | None
    wait_s: float | None
    on_demand_usd: float | None
    paid_usd: float | None


@dataclass(frozen=True)
class SeedSummary:
    """Several runs against one target: how many reached it, statistics of their last scores, the median time to it."""

    reached: int
    runs: int
    mean: float
    spread: float
    lowest: float
    highest: float
    median_train_s: float | None


def epoch_results(
    curves: Mapping[str, Curve], metric: str, *, starts: Sequence[int] = (0,), submitted: float | None = None
) -> tuple[EpochResult, ...]:  # fmt: skip
    """One result for each step at which `metric` was measured. The curve `epoch` numbers them.

    starts  steps at which generations began: the time before a generation's first line isn't training
    """
    if metric not in curves:
        return ()
    trained = training_times(curves, starts)
    scores, numbers = curves[metric], _by_step(curves, "epoch")
    top1, top5 = _by_step(curves, "val/acc"), _by_step(curves, "val/acc_top5")
    return tuple(
        EpochResult(
            epoch=numbers.get(step, 0.0), train_s=trained[step], score=score, top1=top1.get(step), top5=top5.get(step),
            wait_s=None if submitted is None else time - submitted,
        )
        for step, time, score in zip(scores.steps, scores.times, scores.values, strict=True)
        if step in trained
    )  # fmt: skip


def training_times(curves: Mapping[str, Curve], starts: Sequence[int]) -> dict[int, float | None]:
    """Training time after each step, in seconds: the time between lines less the evaluation in them.

    A generation's first line comes after startup and imports, so the usual step time is used for it. None if there are
    no other lines to tell that.
    """
    times: dict[int, float] = {}
    for name, curve in curves.items():
        if not name.startswith("system/"):
            times |= dict(zip(curve.steps, curve.times, strict=True))
    evaluation, begun = _by_step(curves, EVALUATION_S), {0, *starts}
    spans: list[tuple[int, int, float | None]] = []  # from step, to step, seconds of training if its lines tell
    before_step, before_time = 0, 0.0
    for step, time in sorted(times.items()):
        seconds = max(0.0, time - before_time - evaluation.get(step, 0.0))
        spans.append((before_step, step, None if before_step in begun else seconds))
        before_step, before_time = step, time
    known = [seconds / (end - start) for start, end, seconds in spans if seconds is not None]
    if not known:
        return {end: None for _, end, _ in spans}
    usual = statistics.median(known)
    total = 0.0
    after_step: dict[int, float | None] = {}
    for start, end, seconds_or_none in spans:
        total += usual * (end - start) if seconds_or_none is None else seconds_or_none
        after_step[end] = total
    return after_step


def time_to_target(run: RunResult, target: float) -> TimeToTarget | None:
    """The time and cost for `run` to reach `target`; None if it didn't."""
    epoch = run.first_reaching(target)
    if epoch is None:
        return None
    then = None if run.submitted is None or epoch.wait_s is None else run.submitted + epoch.wait_s
    return TimeToTarget(
        epoch=epoch.epoch,
        train_s=epoch.train_s,
        wait_s=epoch.wait_s,
        on_demand_usd=None
        if run.usd_per_hour is None or epoch.train_s is None
        else run.usd_per_hour * epoch.train_s / 3600,
        paid_usd=cost_until(run.machines, then) if run.machines and then is not None else None,
    )


def cost_until(machines: Sequence[RentedMachine], moment: float) -> float:
    """The cost of machines until `moment` (Unix seconds) in dollars, by the second; the ledger has the exact bill."""
    return sum(
        machine.usd_per_hour * max(0.0, min(machine.end or moment, moment) - machine.start) / 3600
        for machine in machines
    )


def energy_joules(meters: Iterable[Sequence[Curve]]) -> float | None:
    """Joules by all meters together; None if nothing was measured.

    Several machines may read the same meter, each from its own start; where readings overlap, only one counts. A
    decreasing value means that the counter was reset.
    """
    measured: list[float] = []
    for curves in meters:
        until = -math.inf
        for begin, end, joules in sorted(span for curve in curves for span in _rises(curve)):
            if joules >= 0 and end > max(begin, until):
                measured.append(joules * (end - max(begin, until)) / (end - begin))
                until = end
    return math.fsum(measured) if measured else None


def _rises(curve: Curve) -> Iterator[tuple[float, float, float]]:
    """The start, end and increase of each interval of a counter."""
    for (begin, before), (end, after) in pairwise(zip(curve.times, curve.values, strict=True)):
        yield begin, end, after - before


def summarize_seeds(runs: Sequence[RunResult], target: float) -> SeedSummary:
    """How reliably runs of one recipe reach `target`. Raises ValueError if none was evaluated."""
    last = [run.last for run in runs if run.last is not None]
    if not last:
        raise ValueError("none of the runs has been evaluated yet")
    reached = [found for run in runs if (found := run.first_reaching(target))]
    times = [found.train_s for found in reached if found.train_s is not None]
    return SeedSummary(
        reached=len(reached),
        runs=len(runs),
        mean=statistics.fmean(last),
        spread=statistics.stdev(last) if len(last) > 1 else 0.0,
        lowest=min(last),
        highest=max(last),
        median_train_s=statistics.median(times) if times else None,
    )


def _by_step(curves: Mapping[str, Curve], name: str) -> dict[int, float]:
    curve = curves.get(name)
    return dict(zip(curve.steps, curve.values, strict=True)) if curve else {}

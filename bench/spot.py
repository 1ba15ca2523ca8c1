# SPDX-License-Identifier: Apache-2.0
"""Spot policies on recorded availability, beside the optimum: `SPOT_TRACES=folder python -m bench spot`.

48 h of work; deadlines of 52, 60 and 70 h, changeovers of 0.05, 0.1 and 0.2 h, the paper's price ratio; 150 evenly
spaced starts in each zone; then 20,000 random starts, spread over zones and settings; then all zones at once.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from shoestring.spot_traces import SpotTrace, read_traces
from shoestring_core.decide.spot.deadline_job import Bools, DeadlineJob, Floats
from shoestring_core.decide.spot.policies import POLICIES
from shoestring_core.decide.spot.simulation import simulate

WORK_H, DEADLINES_H, CHANGEOVERS_H = 48.0, (52.0, 60.0, 70.0), (0.05, 0.1, 0.2)
PRICE_RATIO = 3.06 / 0.9731
STARTS, RANDOM_STARTS, SEED = 150, 20_000, 1
FIXED = ("uniform-progress-0", "uniform-progress-eager")
WARM_UP_H = 240.0


def main() -> list[str]:
    folder = os.environ.get("SPOT_TRACES")
    if not folder:
        return ["not run: SPOT_TRACES names no folder of traces"]
    traces = read_traces(Path(folder))
    began = time.perf_counter()
    lines = [*_settings(traces), _random_starts(traces), *_all_zones(traces)]
    return [*lines, f"{len(traces)} zones; {time.perf_counter() - began:.0f} s in all"]


def _settings(traces: list[SpotTrace]) -> list[str]:
    lines, gains, closed = (
        ["deadline, changeover: greedy | paper | h = 0 | h = -inf | adaptive | optimum (bound)"],
        [],
        [],
    )
    missed = 0
    for deadline in DEADLINES_H:
        for changeover in CHANGEOVERS_H:
            job = _job(traces[0], deadline, changeover)
            series = np.concatenate([_windows(_series([trace]), job, STARTS) for trace in traces])
            outcomes = {name: simulate(job, policy(), series) for name, policy in POLICIES.items()}
            missed += sum(int(outcome.missed.sum()) for outcome in outcomes.values())
            cost = {name: float(outcome.cost.mean()) for name, outcome in outcomes.items()}
            bound = float(optimum(job, series[:, :, 0]).mean())
            gains.append(min(cost[name] for name in FIXED) - cost["adaptive"])
            closed.append((cost["greedy"] - cost["adaptive"]) / (cost["greedy"] - bound))
            names = ("greedy", "uniform-progress", *FIXED, "adaptive")
            figures = " | ".join(f"{value:.4f}" for value in (*(cost[name] for name in names), bound))
            lines.append(f"{deadline:g} h, {changeover:g} h: {figures} (gap closed {closed[-1]:.0%})")
    holds = np.mean(gains) >= 0.004 and min(gains) >= -0.003 and not missed
    return [
        *lines,
        (
            f"adaptive below the better of h = 0 and h = -inf: mean {np.mean(gains):.4f}, worst {min(gains):.4f} "
            f"(bounds ≥ 0.004, ≥ -0.003); missed deadlines {missed} (bound 0): {'holds' if holds else 'MISSED'}"
        ),
        (
            f"gap from greedy to the optimum closed: mean {np.mean(closed):.1%} "
            f"(bound ≥ 75 %: {'holds' if np.mean(closed) >= 0.75 else 'MISSED'})"
        ),
    ]


def _random_starts(traces: list[SpotTrace]) -> str:
    rng = np.random.default_rng(SEED)
    settings = [(deadline, changeover) for deadline in DEADLINES_H for changeover in CHANGEOVERS_H]
    costs: dict[str, list[Floats]] = {name: [] for name in ("adaptive", *FIXED)}
    missed = 0
    for index, (deadline, changeover) in enumerate(settings):
        job = _job(traces[0], deadline, changeover)
        runs = RANDOM_STARTS // len(settings) + (index < RANDOM_STARTS % len(settings))
        zones = rng.integers(0, len(traces), runs)
        series = np.concatenate(
            [_random_windows(trace, job, int((zones == z).sum()), rng) for z, trace in enumerate(traces)]
        )
        for name in costs:
            outcome = simulate(job, POLICIES[name](), series)
            costs[name].append(outcome.cost)
            missed += int(outcome.missed.sum())
    means = ", ".join(f"{name} {np.concatenate(parts).mean():.4f}" for name, parts in costs.items())
    return f"{RANDOM_STARTS} random starts (seed {SEED}): {means}; missed deadlines {missed}"


def _all_zones(traces: list[SpotTrace]) -> list[str]:
    job, series = _job(traces[0], 60.0, 0.2), _series(traces)
    lines = []
    for name, warm_up_h, bound in (("cold start", 0.0, 0.327), ("after 10 days", WARM_UP_H, 0.325)):
        warm_up = round(warm_up_h / job.interval)
        outcome = simulate(job, POLICIES["adaptive"](), _windows(series, job, STARTS, warm_up), warm_up)
        cost = float(outcome.cost.mean())
        verdict = "holds" if cost <= bound and not outcome.missed.any() else "MISSED"
        lines.append(f"all zones at 60 h, 0.2 h, {name}: {cost:.4f} (bound ≤ {bound}: {verdict})")
    return lines


def _job(trace: SpotTrace, deadline: float, changeover: float) -> DeadlineJob:
    return DeadlineJob(WORK_H, deadline, changeover, PRICE_RATIO, trace.interval_s / 3600)


def _series(traces: list[SpotTrace]) -> Bools:
    """Shape [intervals, zones]."""
    length = min(len(trace.available) for trace in traces)
    return np.stack([np.frombuffer(trace.available[:length], np.uint8) == 1 for trace in traces], axis=1)


def _windows(series: Bools, job: DeadlineJob, starts: int, warm_up: int = 0) -> Bools:
    first = np.linspace(warm_up, len(series) - job.intervals, starts).astype(int)
    return np.stack([series[start - warm_up : start + job.intervals] for start in first])


def _random_windows(trace: SpotTrace, job: DeadlineJob, runs: int, rng: np.random.Generator) -> Bools:
    series = _series([trace])
    first = rng.integers(0, len(series) - job.intervals + 1, runs)
    windows = np.lib.stride_tricks.sliding_window_view(series[:, 0], job.intervals)
    return windows[first][:, :, None]


def optimum(job: DeadlineJob, available: Bools) -> Floats:
    """A lower bound of what anyone who knew the series, shape [runs, intervals], would pay, as a share of on-demand.

    The Lagrangian dual of the omniscient integer program of the paper: the work is paid by a price per hour, under
    which each interval is decided by dynamic programming; the bound is the best over prices, by golden-section search.
    """
    runs = len(available)
    low, high = np.full(runs, 0.9), np.full(runs, 3 * job.price_ratio)
    golden = (5**0.5 - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = _dual(job, available, left), _dual(job, available, right)
    best = np.maximum(at_left, at_right)
    for _ in range(16):
        rises = at_left < at_right
        low, high = np.where(rises, left, low), np.where(rises, high, right)
        left, right = high - golden * (high - low), low + golden * (high - low)
        at_left, at_right = _dual(job, available, left), _dual(job, available, right)
        best = np.maximum(best, np.maximum(at_left, at_right))
    return best / (job.price_ratio * job.work)


def _dual(job: DeadlineJob, available: Bools, price: Floats) -> Floats:
    waiting = np.zeros(len(available))
    spot, on_demand = waiting.copy(), waiting.copy()
    for interval in reversed(range(job.intervals)):
        stay_spot = np.where(available[:, interval], job.interval * (1 - price) + spot, np.inf)
        stay_on_demand = job.interval * (job.price_ratio - price) + on_demand
        to_spot, to_on_demand = stay_spot + price * job.changeover, stay_on_demand + price * job.changeover
        from_waiting = np.minimum(np.minimum(waiting, to_spot), to_on_demand)
        from_spot = np.minimum(np.minimum(waiting, stay_spot), to_on_demand)
        spot = np.where(available[:, interval], from_spot, from_waiting)
        on_demand = np.minimum(np.minimum(waiting, to_spot), stay_on_demand)
        waiting = from_waiting
    return waiting + price * job.work

# SPDX-License-Identifier: Apache-2.0
"""How long a run will take, and how long its machines are paid for, as bands that hold for four runs of five.

A band comes from draws of how the run can go. Each draws how much slower or faster than expected it trains: by
Student's t distribution, because the spread is itself estimated from few runs. On spot machines whose interruptions
were observed it also draws how often machines last and how long a replacement takes, as uncertain as what was observed
leaves them. The draws are always the same, so that equal inputs give equal bands.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.8
"""The share of runs that lie within a band."""

BELOW = (0.1, 0.05, 0.0)
"""The share of runs that may lie below a band; what is left lies above. Many runs are never interrupted, none is much
faster than these, and the rest take ever longer: a band that leaves out nothing below is the narrowest for such."""

DRAWS = 200

SPREAD_WEIGHT = 3.0
"""How many observed deviations the assumed spread of a basis counts as much as."""

MAX_OBSERVATIONS = 8.0
"""Observed interruptions count at most as so many: how long machines last changes from week to week."""

UPTIME_SHAPE, OUTAGE_SHAPE = 2.5, 1.3
"""Of the Lomax distributions of how long spot machines last and replacements take. A shape so near to 1 has a long
tail: most machines are lost early, and a few last most of the time."""

MAX_INTERRUPTIONS = 100
"""After so many losses a draw continues without any."""


@dataclass(frozen=True)
class Band:
    """Four runs of five lie between `low` and `high`, at most one of ten below; half are below `expected`."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True)
class SpotHistory:
    """What was observed of spot machines of one type. Seconds.

    up_s      that they ran, all together
    losses    how often one was interrupted
    outages   after how many of these a replacement was launched
    outage_s  how long those took to be launched, all together
    """

    up_s: float
    losses: int
    outages: int
    outage_s: float

    def covers(self, machine_s: float) -> bool:
        """Whether it says how often so much machine time is interrupted; little without a loss says nothing."""
        return self.losses >= 3 or self.up_s >= machine_s


@dataclass(frozen=True)
class RunForecast:
    """What the bands of a run are made from. Seconds.

    run_s      expected from the ranks' start to the end, without an interruption
    boot_s     before, from the launch of the machines
    restart_s  that an interruption adds: the next machine's boot and startup
    teardown_s that machines are paid for after the end
    nodes      machines, each of which can be lost
    deviations of the measured runs from their mean, as logarithms; at least one
    spread     assumed standard deviation of such logarithms, for want of runs
    spot       None: no interruptions, or none are known
    """

    run_s: float
    boot_s: float
    restart_s: float
    teardown_s: float
    nodes: int
    deviations: tuple[float, ...]
    spread: float
    spot: SpotHistory | None


@dataclass(frozen=True)
class RunBands:
    """time_s: from launch to end; paid_s: of each machine; interrupted: the share of draws with an interruption."""

    time_s: Band
    paid_s: Band
    interrupted: float


def deviations(values: Sequence[float]) -> tuple[float, ...]:
    """Logarithms of what differs between runs that took so long, around their mean."""
    logs = [math.log(value) for value in values if value > 0]
    mean = statistics.fmean(logs) if logs else 0.0
    return tuple(log - mean for log in logs) or (0.0,)


def predict(forecast: RunForecast) -> RunBands:
    draw = _Uniforms()
    runs = len(forecast.deviations)
    freedom = SPREAD_WEIGHT + runs - 1
    squares = SPREAD_WEIGHT * forecast.spread**2 + sum(one**2 for one in forecast.deviations)
    scale = math.sqrt(squares / freedom * (1 + 1 / runs))
    times, paid, interrupted = [], [], 0
    for _ in range(DRAWS):
        t = draw.normal() / math.sqrt(_mean_square(draw, freedom))
        run_s = forecast.run_s * math.exp(scale * t)
        if forecast.spot is None:
            losses, running_s, waited_s = 0, forecast.boot_s + run_s, 0.0
        else:
            losses, running_s, waited_s = _draw_interruptions(draw, forecast, forecast.spot, run_s)
        times.append(running_s + waited_s)
        paid.append(running_s + forecast.teardown_s)
        interrupted += losses > 0
    return RunBands(_band(times), _band(paid), interrupted / DRAWS)


def _draw_interruptions(
    draw: _Uniforms, forecast: RunForecast, spot: SpotHistory, run_s: float
) -> tuple[int, float, float]:
    """Interruptions, seconds that machines run, and seconds until replacements are launched, of one way to go."""
    uptime_s = max(spot.up_s, 1.0) / max(spot.losses, 0.5) / _uncertainty(draw, spot.losses) / forecast.nodes
    outage_s = spot.outage_s / max(spot.outages, 1) / _uncertainty(draw, spot.outages)
    # A run begins at any moment while there are machines, and most such moments lie in the long times without a loss.
    lasts_s = _lomax(draw, UPTIME_SHAPE - 1, uptime_s * (UPTIME_SHAPE - 1))
    setup_s, losses, running_s, waited_s = forecast.boot_s, 0, 0.0, 0.0
    while lasts_s < setup_s + run_s and losses < MAX_INTERRUPTIONS:
        run_s -= max(0.0, lasts_s - setup_s)
        losses, running_s, setup_s = losses + 1, running_s + lasts_s, forecast.restart_s
        waited_s += _lomax(draw, OUTAGE_SHAPE, outage_s * (OUTAGE_SHAPE - 1))
        lasts_s = _lomax(draw, UPTIME_SHAPE, uptime_s * (UPTIME_SHAPE - 1))
    return losses, running_s + setup_s + run_s, waited_s


def _uncertainty(draw: _Uniforms, observations: int) -> float:
    """A factor around 1 for a rate that is estimated from so many observations."""
    return _mean_square(draw, 2 * min(max(float(observations), 0.5), MAX_OBSERVATIONS))


def _mean_square(draw: _Uniforms, freedom: float) -> float:
    """The mean of so many squares of standard normal variables, nearly (Wilson and Hilferty)."""
    variance = 2 / (9 * freedom)
    return math.pow(max(0.01, 1 - variance + draw.normal() * math.sqrt(variance)), 3)


def _lomax(draw: _Uniforms, shape: float, scale: float) -> float:
    return scale * (math.pow(draw.uniform(), -1 / shape) - 1)


class _Uniforms:
    """The generator splitmix64, always from the same state: decisions have no source of randomness."""

    def __init__(self) -> None:
        self._state = 0

    def uniform(self) -> float:
        """Above 0 and below 1."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _64_BITS
        mixed = self._state
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _64_BITS
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _64_BITS
        return (((mixed ^ (mixed >> 31)) >> 12) + 0.5) / 2**52

    def normal(self) -> float:
        return _NORMAL.inv_cdf(self.uniform())


_64_BITS = 2**64 - 1
_NORMAL = statistics.NormalDist()


def _band(values: list[float]) -> Band:
    values.sort()
    last = len(values) - 1
    ends = [(values[round(below * last)], values[round((below + LEVEL) * last)]) for below in BELOW]
    low, high = min(ends, key=lambda pair: pair[1] / max(pair[0], 1e-9))
    return Band(low, values[round(last / 2)], high)

# SPDX-License-Identifier: Apache-2.0
"""Bands of time and cost hold for four runs of five, and are narrower than a fixed factor that holds as often."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from shoestring_core.decide.predictions import Band, RunForecast, SpotHistory, deviations, predict

CALM = RunForecast(
    run_s=3600.0, boot_s=60.0, restart_s=90.0, teardown_s=10.0, nodes=1, deviations=(0.0,), spread=0.05, spot=None
)


@dataclass
class Kept:
    """Whether bands held, by (band, actual)."""

    pairs: list[tuple[Band, float]]

    @property
    def coverage(self) -> float:
        return statistics.fmean(band.low <= actual <= band.high for band, actual in self.pairs)

    @property
    def below(self) -> float:
        """The share of runs that were faster than their band."""
        return statistics.fmean(actual < band.low for band, actual in self.pairs)

    @property
    def width(self) -> float:
        """Mean logarithm of high / low: how wide the bands are as factors."""
        return statistics.fmean(math.log(band.high / band.low) for band, _ in self.pairs)

    def fixed_width(self) -> float:
        """The narrowest band of fixed factors around what is expected that holds as often."""
        ratios = sorted(math.log(actual / band.expected) for band, actual in self.pairs)
        kept = math.ceil(self.coverage * len(ratios))
        return min(ratios[i + kept - 1] - ratios[i] for i in range(len(ratios) - kept + 1))


def speeds(draw: random.Random) -> Kept:
    """Works whose runs differ by 1 to 16 %, each predicted from two to five earlier runs."""
    pairs = []
    for _ in range(300):
        spread, runs = draw.choice((0.01, 0.04, 0.16)), draw.randint(2, 5)
        earlier = [3600 * math.exp(draw.gauss(0, spread)) for _ in range(runs)]
        actual = 3600 * math.exp(draw.gauss(0, spread))
        forecast = replace(CALM, run_s=statistics.median(earlier), deviations=deviations(earlier))
        pairs.append((predict(forecast).time_s, 60 + actual))
    return Kept(pairs)


def test_bands_hold_for_four_runs_of_five_whose_speed_differs():
    kept = speeds(random.Random(1))
    assert 0.72 <= kept.coverage <= 0.88
    assert kept.width < kept.fixed_width()


def uptimes(draw: random.Random, mean_s: float) -> float:
    """How long a machine lasts: half of them only a short time, so that losses come in clusters, as on real traces."""
    return draw.expovariate(1 / (mean_s * (0.1 if draw.random() < 0.5 else 1.9)))


@dataclass
class Zone:
    """A zone with machines and without, in turn; `begins` are the times at which machines appear or are gone."""

    up: list[float]
    down: list[float]

    @classmethod
    def drawn(cls, draw: random.Random, uptime_s: float, outage_s: float) -> Zone:
        up = [uptimes(draw, uptime_s) for _ in range(400)]
        return cls(up, [uptimes(draw, outage_s) for _ in up])

    def history(self, before: int) -> SpotHistory:
        return SpotHistory(sum(self.up[:before]), before, before, sum(self.down[:before]))

    def run(self, draw: random.Random, forecast: RunForecast, after: int) -> tuple[float, float]:
        """Time and paid time of a run that begins at any moment of the machine time after the first losses."""
        (i,) = draw.choices(range(after, 300), weights=self.up[after:300])
        lasts, setup, left, running, waited = draw.random() * self.up[i], forecast.boot_s, forecast.run_s, 0.0, 0.0
        while lasts < setup + left:
            left -= max(0.0, lasts - setup)
            running, waited, setup = running + lasts, waited + self.down[i], forecast.restart_s
            i = i + 1 if i + 1 < len(self.up) else after
            lasts = self.up[i]
        return running + setup + left + waited, running + setup + left + forecast.teardown_s


def spot_runs(draw: random.Random) -> tuple[Kept, Kept]:
    times, paid = [], []
    for uptime_h, outage_h in ((0.7, 0.5), (2.0, 1.0), (5.0, 0.5), (12.0, 3.0)):
        zone = Zone.drawn(draw, uptime_h * 3600, outage_h * 3600)
        for _ in range(60):
            work_s, losses = draw.choice((1, 4, 12)) * 3600.0, draw.randint(3, 30)
            forecast = replace(CALM, run_s=work_s, restart_s=600.0, spread=0.001, spot=zone.history(losses))
            bands, (time_s, paid_s) = predict(forecast), zone.run(draw, forecast, losses)
            slack = 1.005  # of the speed, which does not differ here
            times.append((_widened(bands.time_s, slack), time_s))
            paid.append((_widened(bands.paid_s, slack), paid_s))
    return Kept(times), Kept(paid)


def _widened(band: Band, factor: float) -> Band:
    return Band(band.low / factor, band.expected, band.high * factor)


def test_bands_hold_for_four_runs_of_five_that_are_interrupted():
    times, paid = spot_runs(random.Random(3))
    assert 0.72 <= times.coverage <= 0.88
    assert 0.72 <= paid.coverage <= 0.88
    assert max(times.below, paid.below) <= 0.1
    assert times.width < times.fixed_width()
    assert paid.width < paid.fixed_width()


def test_equal_inputs_give_equal_bands():
    forecast = replace(CALM, spot=SpotHistory(36_000.0, 5, 5, 1800.0))
    assert predict(forecast) == predict(replace(forecast))


def test_a_machine_is_paid_while_it_boots_and_ends_but_not_while_there_is_none():
    calm = predict(replace(CALM, spread=1e-9))
    assert calm.time_s.expected == pytest.approx(3660)
    assert calm.paid_s.expected == pytest.approx(3670)
    assert calm.interrupted == 0
    scarce = predict(replace(CALM, spread=1e-9, spot=SpotHistory(7200.0, 40, 40, 400_000.0)))
    assert scarce.interrupted > 0.9
    assert scarce.time_s.expected > 2 * scarce.paid_s.expected
    assert scarce.paid_s.expected > calm.paid_s.expected  # what restarts take is paid


def test_more_machines_are_interrupted_more_often():
    history = SpotHistory(360_000.0, 10, 0, 0.0)
    one, eight = (predict(replace(CALM, nodes=nodes, spot=history)).interrupted for nodes in (1, 8))
    assert 0 < one < eight


def test_a_band_is_the_wider_the_less_its_runs_agree():
    def width(values: Sequence[float]) -> float:
        band = predict(replace(CALM, deviations=deviations(values))).time_s
        return band.high / band.low

    assert width((100, 101, 99, 100, 100)) < width((100,)) < width((100, 130, 80, 110, 95))


def test_little_machine_time_without_a_loss_says_nothing_of_interruptions():
    assert not SpotHistory(600.0, 0, 0, 0.0).covers(3600.0)
    assert SpotHistory(3600.0, 0, 0, 0.0).covers(3600.0)
    assert SpotHistory(600.0, 3, 0, 0.0).covers(3600.0)

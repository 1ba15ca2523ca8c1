# SPDX-License-Identifier: Apache-2.0
"""Schedules as plain values: knots, and one function that reads between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from shoestring_trainer.training.faults import UserError
from shoestring_trainer.training.settings import Settings

Knots = Sequence[tuple[float, float]]


def piecewise_linear(knots: Knots, at: float) -> float:
    """The value at `at` on straight lines between (position, value) knots in rising order; flat outside them."""
    for (x0, y0), (x1, y1) in pairwise(knots):
        if at < x1:
            return y0 + (y1 - y0) * max(0.0, (at - x0) / (x1 - x0))
    return knots[-1][1]


def one_cycle(peak: float, warmup: float) -> Knots:
    """Rise from a tenth of `peak` over the first `warmup` share of the run, then fall to zero at its end."""
    rise = [(0.0, peak / 10)] if warmup > 0 else []
    return [*rise, (min(warmup, 1.0), peak), (1.0, 0.0)] if warmup < 1 else [*rise, (1.0, peak)]


def read_knots(text: str) -> Knots:
    """Knots from text, "0:0.2 3/10:1 1:0". Raises UserError that shows what is wrong."""
    try:
        knots = [(float(Fraction(at)), float(value)) for at, value in (knot.split(":") for knot in text.split())]
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"the schedule {text!r} can't be read ({error}); write it as '0:0.1 1/5:1 1:0'") from error
    if not knots or any(x1 < x0 for (x0, _), (x1, _) in pairwise(knots)) or not all(math.isfinite(y) for _, y in knots):
        raise UserError(f"the schedule {text!r} needs knots with rising positions from 0 to 1, as in '0:0.1 1/5:1 1:0'")
    return knots


@dataclass(frozen=True)
class Pace:
    """What the optimizer is told before a step.

    rate       factor of every rate but the whitening layer's
    whitening  factor of that one
    """

    rate: float
    whitening: float
    momentum: float


@dataclass(frozen=True)
class Plan:
    """The whole run before it starts: how many steps, and the pace of each."""

    epoch_samples: int
    steps: int
    rates: Knots
    whitening: Knots
    momenta: Knots

    @staticmethod
    def of(settings: Settings, samples: int) -> Plan:
        """The plan for `samples` training pictures. Raises UserError if a schedule can't be read or no batch fills."""
        batch = settings.batch_size
        epoch_samples = samples // batch * batch if settings.drop_last else samples
        if not epoch_samples:
            raise UserError(f"batch_size is {batch}, more than the {samples} training pictures; lower it")
        rates = read_knots(settings.lr_schedule) if settings.lr_schedule else one_cycle(1.0, settings.warmup)
        return Plan(
            epoch_samples,
            math.ceil(round(settings.epochs * epoch_samples / batch, 6)),
            rates,
            read_knots(settings.whitening_schedule) if settings.whitening_schedule else rates,
            read_knots(settings.momentum_schedule) if settings.momentum_schedule else [(0.0, settings.momentum)],
        )

    def pace(self, step: int) -> Pace:
        """The pace of step `step` (counted from 0)."""
        at = step / self.steps
        return Pace(*(piecewise_linear(knots, at) for knots in (self.rates, self.whitening, self.momenta)))

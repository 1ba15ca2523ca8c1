# SPDX-License-Identifier: Apache-2.0
"""Schedules as plain values: knots, and one function that reads between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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

# SPDX-License-Identifier: Apache-2.0
"""Schedules as pure functions of the position in a run, 0 to 1, given by breakpoints."""

from __future__ import annotations

from itertools import pairwise

from shoestring_core.breakpoints import Breakpoints, parse_breakpoints

from shoestring_trainer.training.errors import UserError


def piecewise_linear(breakpoints: Breakpoints, position: float) -> float:
    """Interpolate linearly between breakpoints; constant before the first and after the last."""
    for (x0, y0), (x1, y1) in pairwise(breakpoints):
        if position < x1:
            return y0 + (y1 - y0) * max(0.0, (position - x0) / (x1 - x0))
    return breakpoints[-1][1]


def piecewise_constant(breakpoints: Breakpoints, position: float) -> float:
    """Return the value of the last breakpoint at or before `position`."""
    return [value for start, value in breakpoints if start <= position][-1]


def warmup_then_decay(peak: float, warmup: float) -> Breakpoints:
    """Rise from a tenth of `peak` over the first `warmup` share of the run, then fall linearly to zero at its end."""
    rise = [(0.0, peak / 10)] if warmup > 0 else []
    return [*rise, (min(warmup, 1.0), peak), (1.0, 0.0)] if warmup < 1 else [*rise, (1.0, peak)]


def parse_schedule(text: str) -> Breakpoints:
    """Parse breakpoints such as "0:0.2 3/10:1 1:0". Raises UserError that shows what is wrong."""
    try:
        return parse_breakpoints(text)
    except ValueError as error:
        raise UserError(str(error)) from error


def parse_step_schedule(text: str, default: float) -> Breakpoints:
    """Parse breakpoints between which the value is constant, "0:128 14/35:224"; for "", `default` throughout."""
    breakpoints = parse_schedule(text) if text else [(0.0, float(default))]
    if breakpoints[0][0] != 0 or breakpoints[-1][0] > 1:
        raise UserError(f"the schedule {text!r} must begin at 0 and end by 1, as in '0:128 14/35:224'")
    return breakpoints


def scale(breakpoints: Breakpoints, factor: float) -> Breakpoints:
    """Multiply every value by `factor`."""
    return [(position, factor * value) for position, value in breakpoints]

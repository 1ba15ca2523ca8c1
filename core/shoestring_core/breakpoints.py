# SPDX-License-Identifier: Apache-2.0
"""Values that change in the course of a run, given by breakpoints: the text in parameters such as `lr_schedule`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

Breakpoints = Sequence[tuple[float, float]]
"""(position, value) pairs in increasing order of position, 0 to 1. Two at one position are a jump."""


def parse_breakpoints(text: str) -> Breakpoints:
    """Parse breakpoints such as "0:0.2 3/10:1 1:0". Raises ValueError that shows what is wrong."""
    try:
        breakpoints = [
            (float(Fraction(position)), float(Fraction(value)))
            for position, value in (word.split(":") for word in text.split())
        ]
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"the schedule {text!r} can't be parsed ({error}); write it as '0:0.1 1/5:1 1:0'") from error
    increasing = all(x0 <= x1 for (x0, _), (x1, _) in pairwise(breakpoints))
    if not breakpoints or not increasing or not all(math.isfinite(value) for _, value in breakpoints):
        raise ValueError(
            f"the schedule {text!r} needs breakpoints at increasing positions from 0 to 1, as in '0:0.1 1/5:1 1:0'"
        )
    return breakpoints

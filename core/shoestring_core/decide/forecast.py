# SPDX-License-Identifier: Apache-2.0
"""What a budget will have spent when its period ends, from what it spent lately and what is committed.

The last weeks are cut into slices of equal length. Spending is expected to continue so: the rest of the period is
their mean, and its band is that of a sum of independent slices whose mean isn't known exactly either,
s² · r · (1 + r / n) for r slices to come and n that were seen; so it widens with the time that is left. Four periods of
five end within it if spending continues as before; a change of habits does not show before it is in the slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

DAY = 86_400_000_000
HOUR = 3_600_000_000
WINDOW = 28 * DAY
"""What counts as lately."""
SLICES = 14
MIN_SLICES = 3
"""Fewer say nothing."""
BAND_SIGMAS = 1.2816
"""One of ten lies below the band, one above."""


@dataclass(frozen=True)
class Forecast:
    """Micro-dollars; times in µs UTC.

    committed        what is held now
    low … high       spent when the period ends, if nothing stopped it at the limit
    pace             a day, lately
    even_pace        a day, which would use the limit exactly; negative: more than it is used
    exhausted_at     when the limit is spent at this pace; None: never
    """

    spent: int
    committed: int
    low: int
    expected: int
    high: int
    pace: int
    even_pace: int
    exhausted_at: int | None

    def crosses(self, limit: int) -> bool:
        """Whether more than the limit is expected to be spent before the period ends."""
        return self.expected > limit


def cut_slices(hours: Sequence[int]) -> tuple[list[int], int]:
    """Spending by the hour, oldest first, as at most SLICES equal slices of whole hours; and their length in µs.

    The oldest hours that fill no slice are left out.
    """
    per_slice = max(1, len(hours) // SLICES)
    count = min(SLICES, len(hours) // per_slice)
    recent = hours[len(hours) - count * per_slice :]
    return [sum(recent[first : first + per_slice]) for first in range(0, len(recent), per_slice)], per_slice * HOUR


def forecast(
    hours: Sequence[int], spent: int, committed: int, limit: int, now: int, ends_at: int
) -> Forecast | None:  # fmt: skip
    """The forecast for `ends_at`; None if too little was seen.

    hours  micro-dollars of the last hours, oldest first, from the first in which anything was spent
    """
    slices, length = cut_slices(hours)
    if len(slices) < MIN_SLICES:
        return None
    to_come = max(0, ends_at - now) / length
    mean = max(0.0, fmean(slices))
    sigma = (variance(slices) * to_come * (1 + to_come / len(slices))) ** 0.5
    expected = mean * to_come
    left = limit - spent
    exhausted_at = now if left <= 0 else now + round(left * length / mean) if mean > 0 else None
    return Forecast(
        spent=spent,
        committed=committed,
        low=spent + round(max(0.0, expected - BAND_SIGMAS * sigma)),
        expected=spent + round(expected),
        high=max(spent + round(expected + BAND_SIGMAS * sigma), spent + committed),
        pace=round(mean * DAY / length),
        even_pace=round(left * DAY / (ends_at - now)) if ends_at > now else 0,
        exhausted_at=exhausted_at,
    )

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from shoestring_core.decide.forecast import DAY, HOUR, MIN_SLICES, SLICES, cut_slices, forecast

NOW = 1_800_000_000_000_000
HOURS = st.lists(st.integers(0, 10**9), max_size=100)


def test_even_spending_goes_on_as_it_did_without_a_band() -> None:
    found = forecast([100] * 280, 28_000, 500, 100_000, NOW, NOW + 10 * DAY)
    assert (found.low, found.expected, found.high) == (52_000, 52_000, 52_000)
    assert (found.pace, found.even_pace) == (2400, 7200)
    assert found.exhausted_at == NOW + 30 * DAY
    assert not found.crosses(100_000)
    assert found.crosses(51_999)


def test_what_is_held_is_in_the_upper_end() -> None:
    assert forecast([1] * 28, 28, 5000, 10_000, NOW, NOW + DAY).high == 5028


def test_too_little_history_says_nothing() -> None:
    assert forecast([], 0, 0, 100, NOW, NOW + DAY) is None
    assert forecast([5] * (MIN_SLICES - 1), 10, 0, 100, NOW, NOW + DAY) is None
    assert forecast([5] * MIN_SLICES, 15, 0, 100, NOW, NOW + DAY) is not None


def test_nothing_spent_lately_is_never_exhausted() -> None:
    found = forecast([0] * 100, 50, 0, 100, NOW, NOW + DAY)
    assert (found.expected, found.pace, found.exhausted_at) == (50, 0, None)


def test_a_budget_that_is_spent_is_exhausted_now_whatever_it_spends() -> None:
    for hours in ([0] * 100, [100] * 100, [-100] * 100):
        found = forecast(hours, 150, 0, 100, NOW, NOW + DAY)
        assert (found.exhausted_at, found.crosses(100)) == (NOW, True)


def test_hours_are_cut_into_equal_slices_of_the_newest() -> None:
    slices, length = cut_slices([1000, *range(1, 29)])
    assert (len(slices), length) == (SLICES, 2 * HOUR)
    assert sum(slices) == sum(range(1, 29)), "the oldest hour fills no slice"
    assert cut_slices([3, 4]) == ([3, 4], HOUR)


@given(HOURS, st.integers(0, 10**12), st.integers(0, 10**9), st.integers(0, 60 * DAY))
def test_the_band_holds_what_is_expected_and_never_less_than_is_spent(
    hours: list[int], spent: int, held: int, rest: int
) -> None:
    found = forecast(hours, spent, held, 10**12, NOW, NOW + rest)
    if found is not None:
        assert spent <= found.low <= found.expected <= found.high
        assert found.high >= spent + held


def test_four_periods_of_five_end_within_the_band() -> None:
    draw, within = random.Random(1), 0
    for _ in range(400):
        days = [draw.expovariate(1 / 1000) for _ in range(24)]
        hours = [round(day / 24) for day in days[:14] for _ in range(24)]
        found = forecast(hours, 0, 0, 10**9, NOW, NOW + 10 * DAY)
        within += found.low <= sum(days[14:]) <= found.high
    assert 0.72 <= within / 400 <= 0.88

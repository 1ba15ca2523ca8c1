# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoestring_core.decide.soft_lines import DEFAULT, amount_at, checked, newly_reached

LINES = st.lists(st.integers(1, 100), min_size=1, max_size=20, unique=True)
MICRO = st.integers(0, 10**15)


def test_lines_are_reached_to_the_micro_dollar() -> None:
    assert newly_reached(DEFAULT, 0, 49, 100) == []
    assert newly_reached(DEFAULT, 0, 50, 100) == [50]
    assert newly_reached(DEFAULT, 0, 95, 100) == [50, 80, 90]
    assert newly_reached(DEFAULT, 80, 120, 100) == [90, 100]
    assert newly_reached([33], 0, 0, 0) == []
    assert newly_reached([33], 0, 1, 0) == [33]
    assert newly_reached(DEFAULT, 0, 100, None) == []


@given(LINES, st.lists(MICRO, max_size=30), MICRO)
def test_however_use_moves_each_line_is_told_at_most_once_and_never_too_early(
    lines: list[int], uses: list[int], limit: int
) -> None:
    told: list[int] = []
    for use in uses:
        told += newly_reached(lines, max(told, default=0), use, limit)
        assert all(use >= amount_at(line, limit) or max(uses) >= amount_at(line, limit) for line in told)
    assert len(told) == len(set(told))
    assert set(told) == {line for line in lines if max(uses, default=0) >= max(1, amount_at(line, limit))}


@pytest.mark.parametrize("wrong", [[0], [101], [-5, 50], list(range(1, 23))])
def test_lines_out_of_bounds_are_refused(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="soft line"):
        checked(wrong)


def test_lines_are_kept_in_order_and_once() -> None:
    assert checked([90, 50, 90]) == [50, 90]
    assert checked([]) == []

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoestring_core.decide import periods

MICRO = st.integers(0, 10**15)


@pytest.mark.parametrize(
    ("now", "zone", "border"),
    [
        ("2026-11-28T12:00", "UTC", "2026-12-01T00:00"),
        ("2026-12-31T22:59", "Europe/Berlin", "2026-12-31T23:00"),
        ("2026-12-31T23:00", "Europe/Berlin", "2027-01-31T23:00"),
        ("2026-03-31T21:59", "Europe/Berlin", "2026-03-31T22:00"),  # summer time has begun
        ("2028-02-29T12:00", "Pacific/Kiritimati", "2028-02-29T10:00"),
        ("2026-01-31T00:00", "America/New_York", "2026-02-01T05:00"),
    ],
)
def test_a_month_ends_at_midnight_of_its_time_zone(now: str, zone: str, border: str) -> None:
    if zone == "Pacific/Kiritimati":  # there it is March already
        border = "2028-03-31T10:00"
    assert periods.end_of_month(micros(now), zone) == micros(border)


def test_a_term_ends_with_its_last_day() -> None:
    assert periods.end_of_day(date(2027, 2, 15), "Europe/Berlin") == micros("2027-02-15T23:00")
    assert periods.border_text(micros("2027-02-15T23:00"), "Europe/Berlin") == "2027-02-16 00:00 Europe/Berlin"


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "/etc/localtime", "\0", "x" * 5000])
def test_what_is_no_time_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        periods.checked_time_zone(name)


@given(MICRO, MICRO, MICRO, st.sampled_from(["none", "unspent"]), st.none() | MICRO)
def test_a_border_adds_its_amount_and_nothing_else(
    limit: int, used: int, amount: int, rollover: str, cap: int | None
) -> None:
    opening = periods.open_period(limit, used, amount, rollover, cap)
    assert opening.limit - amount == limit - opening.expired
    assert opening.carried_over + opening.expired == max(0, limit - used)
    assert opening.limit - opening.base == amount + opening.carried_over
    assert opening.base == min(limit, used)
    assert cap is None or opening.carried_over <= cap


def micros(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000

# SPDX-License-Identifier: Apache-2.0
"""Periods of budgets: when one ends, and with which limit the next one begins.

An account counts what it has spent since it was made, and its limit counts from there too: what a period begins with is
added to what earlier ones used (`base`). So `posted + held <= limit` holds across every border, and all that is ever
spent is at most the sum of all that was ever granted.

What is held at a border belongs to the period that ends: it is counted there as used, and what such a hold does not
spend is unspent money of that period, however late its bill comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

PeriodKind = Literal["month", "term"]
"""A term ends once, on a day that is given."""
Rollover = Literal["none", "unspent"]
"""What a period leaves expires, or goes to the next one."""


@dataclass(frozen=True)
class Opening:
    """How a period begins. Micro-dollars; `limit` and `base` count from the beginning of the account.

    carried_over  what the last period left, and is added
    expired       what it left, and is lost
    """

    limit: int
    base: int
    carried_over: int
    expired: int


def open_period(limit: int, used: int, amount: int, rollover: str, cap: int | None) -> Opening:
    """The beginning of a period of `amount`, after one that ends with `limit`, and `used` posted or held of it.

    An overdraft counts as used in the new period: it is paid from there.
    """
    base, unspent = min(used, limit), max(0, limit - used)
    carried = carry(unspent, 0, rollover, cap)
    return Opening(base + amount + carried, base, carried, unspent - carried)


def carry(unspent: int, carried_before: int, rollover: str, cap: int | None) -> int:
    """How much of what is unspent goes to the next period, to which `carried_before` has gone already."""
    if rollover == "none":
        return 0
    return unspent if cap is None else max(0, min(unspent, cap - carried_before))


def end_of_month(now: int, time_zone: str) -> int:
    """The first moment of the next month in a time zone, after `now`. µs UTC."""
    here = datetime.fromtimestamp(now / 1e6, UTC).astimezone(ZoneInfo(time_zone))
    later = here.replace(day=1, hour=0, minute=0, second=0, microsecond=0, fold=0) + timedelta(days=32)
    return _first_moment(later.date().replace(day=1), time_zone)


def start_of_day(day: date, time_zone: str) -> int:
    """The first moment of a day in a time zone. µs UTC."""
    return _first_moment(day, time_zone)


def end_of_day(day: date, time_zone: str) -> int:
    """The first moment after a day in a time zone. µs UTC."""
    return _first_moment(day + timedelta(days=1), time_zone)


def border_text(border: int, time_zone: str) -> str:
    """A border as people of the time zone write it."""
    return f"{datetime.fromtimestamp(border / 1e6, UTC).astimezone(ZoneInfo(time_zone)):%Y-%m-%d %H:%M} {time_zone}"


def checked_time_zone(name: str) -> str:
    """Raises ValueError with a sentence for the user."""
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # KeyError: there is no such zone
        raise ValueError(f"{name[:60]!r} is no time zone; use a name such as UTC or Europe/Berlin") from None
    return name


def _first_moment(day: date, time_zone: str) -> int:
    return int(datetime.combine(day, time(), ZoneInfo(time_zone)).timestamp()) * 1_000_000

# SPDX-License-Identifier: Apache-2.0
"""Money: integer micro-dollars inside, a decimal string on the wire, never a float."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from functools import lru_cache

MICRO = 1_000_000
HOUR = 3_600_000_000
"""µs."""
MAX_MICRO = 10**15  # a billion dollars; sums of such amounts still fit 64 bits

_LITERAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,18})?")


def from_decimal(text: str) -> int:
    """Micro-dollars of a decimal string such as "3.00"; exact, so more than six decimals are refused.

    Raises ValueError with a sentence for the user.
    """
    cleaned = text.strip().removeprefix("$")
    if not _LITERAL.fullmatch(cleaned):
        raise ValueError(f"{text!r} is not an amount of money; write dollars as a plain decimal such as 3.00")
    amount = Decimal(cleaned) * MICRO
    if amount != amount.to_integral_value():
        raise ValueError(f"{text!r} has more than six decimals; a millionth of a dollar is the smallest amount")
    if amount > MAX_MICRO:
        raise ValueError(f"{text!r} is more than a billion dollars")
    return int(amount)


def to_decimal(amount: int) -> str:
    """Decimal string of micro-dollars: at least two decimals, no exponent ("3.00", "0.001316")."""
    sign, rest = ("-" if amount < 0 else ""), abs(amount)
    whole, fraction = divmod(rest, MICRO)
    decimals = f"{fraction:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{decimals}"


def rounded(amount: int, rounding: str = ROUND_HALF_EVEN) -> str:
    """Decimal string of micro-dollars to a cent; of less than a dollar, two digits. `rounding`: one of decimal's."""
    step = 10 ** min(4, max(0, len(str(abs(amount))) - 2))
    return to_decimal(int((Decimal(amount) / step).to_integral_value(rounding)) * step)


def cost(price_per_hour: str, duration_us: int) -> int:
    """Micro-dollars of `duration_us` microseconds at a decimal price per hour, rounded half to even."""
    return total_cost([(price_per_hour, duration_us)])


def total_cost(spans: Iterable[tuple[str, int]], per: int = HOUR) -> int:
    """Micro-dollars of spans of time (µs) at a decimal price each, rounded half to even once. `per`: the price's µs."""
    exact = sum((Decimal(price) * duration for price, duration in spans), Decimal(0)) * MICRO / per
    return int(exact.to_integral_value(ROUND_HALF_EVEN))


@lru_cache(maxsize=4096)
def cost_ceiling(price_per_hour: str, duration_us: int) -> int:
    """Like `cost`, rounded up: for amounts that are held before the duration is known."""
    exact = Decimal(price_per_hour) * duration_us * MICRO / HOUR
    return int(exact.to_integral_value(ROUND_CEILING))

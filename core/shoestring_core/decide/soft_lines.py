# SPDX-License-Identifier: Apache-2.0
"""Soft lines: shares of a limit at which its spenders are warned. Nothing is refused at one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

DEFAULT = (50, 80, 90, 100)
"""Percent of a limit."""
MAX_LINES = 20


def newly_reached(lines: Iterable[int], highest_reached: int, used: int, limit: int | None) -> list[int]:
    """The lines that `used` is at or past, of those above the highest that was reached before; the lowest first.

    highest_reached  percent; 0: none. A change of the limit resets it to 0
    used, limit      micro-dollars; no line of a budget without a limit, or without use, is ever reached
    """
    if limit is None or used <= 0:
        return []
    return sorted(line for line in lines if line > highest_reached and used * 100 >= line * limit)


def amount_at(line: int, limit: int) -> int:
    """Micro-dollars of use at which a line of `line` percent is reached."""
    return -(-line * limit // 100)


def checked(lines: Sequence[int]) -> list[int]:
    """Lines in rising order, each once. Raises ValueError with a sentence for the user."""
    if any(not 1 <= line <= 100 for line in lines):
        raise ValueError("A soft line is a whole number of percent from 1 to 100")
    if len(rising := sorted(set(lines))) > MAX_LINES:
        raise ValueError(f"A budget has at most {MAX_LINES} soft lines")
    return rising

# SPDX-License-Identifier: Apache-2.0
"""Numbers as they stand in sentences: counts, spans of steps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN

from shoestring_core import money

Span = tuple[int, int]
"""Steps, first and last."""


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun, such as "1 machine", "3 machines" or "2 classes"; `plural` where it isn't noun + s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def dollars(amount: str) -> str:
    """A decimal amount as people read it, such as "$60.00" or "$0.042"; the fact keeps every digit."""
    return f"${_rounded(amount, ROUND_HALF_EVEN)}"


def dollars_up(amount: str) -> str:
    """As `dollars`, rounded up: what is needed or missing is never told as less."""
    return f"${_rounded(amount, ROUND_CEILING)}"


def shortage(need: str, left: str) -> tuple[str, str]:
    """What is needed, and the less that is left: rounded apart, so that they never read alike."""
    return dollars_up(need), f"${_rounded(left, ROUND_FLOOR)}"


def _rounded(amount: str, rounding: str) -> str:
    """As it is where a stored fact is no amount: sentences are made of any."""
    try:
        return money.rounded(money.from_decimal(amount), rounding)
    except ValueError:
        return amount


def disk_text(kind: str, gib: int, iops: int, mib_per_s: int) -> str:
    return f"{gib} GiB of {kind} with {iops} IOPS and {mib_per_s} MiB/s"


def moment(at: int) -> str:
    """A time (µs UTC), such as "2026-11-28 15:04 UTC"; as it is stored where no calendar has it."""
    try:
        return f"{datetime.fromtimestamp(at // 1_000_000, UTC):%Y-%m-%d %H:%M} UTC"
    except (OSError, OverflowError, ValueError):
        return f"{at} µs UTC"


def clock_time(at: int) -> str:
    """A time of a day that needs no naming (µs UTC), such as "15:04:05 UTC"; as it is stored where no clock has it."""
    try:
        return f"{datetime.fromtimestamp(at // 1_000_000, UTC):%H:%M:%S} UTC"
    except (OSError, OverflowError, ValueError):
        return f"{at} µs UTC"


def batches_of_steps(spans: Sequence[Span]) -> str:
    """Such as "the batches of steps 12, 30 to 33"."""
    steps = [f"{first}" if first == last else f"{first} to {last}" for first, last in spans]
    several = len(spans) > 1 or any(first < last for first, last in spans)
    return f"the {'batches of steps' if several else 'batch of step'} {', '.join(steps)}"

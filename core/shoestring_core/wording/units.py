# SPDX-License-Identifier: Apache-2.0
"""Numbers as they stand in sentences: counts, spans of steps."""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int]
"""Steps, first and last."""


def machines(count: int, noun: str = "machine") -> str:
    """Such as "1 machine", "3 machines"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def batches_of_steps(spans: Sequence[Span]) -> str:
    """Such as "the batches of steps 12, 30 to 33"."""
    steps = [f"{first}" if first == last else f"{first} to {last}" for first, last in spans]
    several = len(spans) > 1 or any(first < last for first, last in spans)
    return f"the {'batches of steps' if several else 'batch of step'} {', '.join(steps)}"

# SPDX-License-Identifier: Apache-2.0
"""How a run recovers from NaN or infinite values: roll back to a checkpoint before them and skip batches.

Training is deterministic, so rolling back alone would lead to the same values. PaLM rolled back some hundred steps
before a loss spike and skipped 200 to 500 batches (arXiv:2204.02311, section 5.1). Here a narrow span is tried first,
then wider ones.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_RECOVERIES = 3
WIDENING_FACTOR = 4

Span = tuple[int, int]
"""Steps, first and last."""


def next_skip(nan_step: int, skipped: Sequence[Span]) -> Span | None:
    """The steps to skip after NaN at step `nan_step`; None: the maximum number of recoveries is reached.

    skipped  the spans that are skipped already: each further one is WIDENING_FACTOR times as wide
    """
    if len(skipped) >= MAX_RECOVERIES:
        return None
    return max(1, nan_step - WIDENING_FACTOR ** len(skipped) + 1), nan_step


def describe_spans(spans: Sequence[Span]) -> str:
    """Such as "the batches of steps 12, 30 to 33"."""
    steps = [f"{first}" if first == last else f"{first} to {last}" for first, last in spans]
    several = len(spans) > 1 or spans[0][0] < spans[0][1]
    return f"the {'batches of steps' if several else 'batch of step'} {', '.join(steps)}"


def failure_text(message: str, skipped: Sequence[Span]) -> str:
    """The error of a run that produced NaN again after all recoveries."""
    return f"{message}; rolling back and skipping {describe_spans(skipped)} did not help" if skipped else message

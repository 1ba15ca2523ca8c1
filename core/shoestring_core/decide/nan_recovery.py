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

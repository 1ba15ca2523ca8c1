# SPDX-License-Identifier: Apache-2.0
"""What to do when the numbers broke: go back to before it happened, and pass over the batches that led there.

Training is deterministic, so going back alone would end at the same place. PaLM went back some hundred steps before a
spike and skipped 200 to 500 batches (arXiv:2204.02311, section 5.1). Here a narrow span is tried first, then wider
ones.
"""

from __future__ import annotations

from collections.abc import Sequence

TRIES = 3
WIDER = 4

Span = tuple[int, int]
"""Steps, first and last."""


def pass_over(broke_at: int, before: Sequence[Span]) -> Span | None:
    """The steps whose batches are passed over when the numbers broke at step `broke_at`; None: enough was tried.

    before  the spans that were passed over already: each further one is WIDER times as wide
    """
    if len(before) >= TRIES:
        return None
    return max(1, broke_at - WIDER ** len(before) + 1), broke_at


def in_words(spans: Sequence[Span]) -> str:
    """Such as "the batches of steps 12, 30 to 33"."""
    steps = [f"{first}" if first == last else f"{first} to {last}" for first, last in spans]
    several = len(spans) > 1 or spans[0][0] < spans[0][1]
    return f"the {'batches of steps' if several else 'batch of step'} {', '.join(steps)}"


def given_up(message: str, before: Sequence[Span]) -> str:
    """What is said of a run whose numbers broke once more."""
    return f"{message}; going back and passing over {in_words(before)} did not help" if before else message

# SPDX-License-Identifier: Apache-2.0
"""Teams that share machines: of 100,000 random events a seed none leads to an eviction below a guaranteed rate, or one
that doesn't lower the largest share; to evictions without end; or to a job that waits for what is free.

python -m tests.soak.sharing --case events --seed N
"""

from __future__ import annotations

import sys
from collections import Counter

from tests.core.decide.shared_machines import play
from tests.fuzzing import Case, Findings, main, summarise, try_each

__all__ = ["CASES", "SEEDS", "summarise"]

SEEDS = 10
AT_ONCE = 200


def play_events(seed: int, count: int) -> Findings:
    """Other teams and machines after each 200 events."""
    happened: Counter[str] = Counter()

    def some(number: int) -> str:
        happened.update(play(f"{seed}/{number}", AT_ONCE))
        return ""

    found = try_each(some, count // AT_ONCE)
    found.outcomes = happened
    return found


CASES = {"events": Case(play_events, 100_000)}

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", CASES))

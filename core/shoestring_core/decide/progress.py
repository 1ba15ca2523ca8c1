# SPDX-License-Identifier: Apache-2.0
"""How far a run is."""

from __future__ import annotations


def remaining_s(total: int | None, step: int, start_step: int, first_step_at: int | None, now: int) -> float | None:
    """Seconds that a run's steps still take, at the pace of its generation, which began after `start_step`; None: too
    few steps tell.

    total          steps of the whole run; None: not known yet
    first_step_at  of the generation, and `now`: µs UTC
    """
    if not total or not first_step_at:
        return None
    done, spent_s = step - start_step, (now - first_step_at) / 1e6
    return max(0, total - step) * spent_s / done if done >= 2 and spent_s > 0 else None

# SPDX-License-Identifier: Apache-2.0
"""Exit codes of the command line; scripts may rely on them."""

from __future__ import annotations

OK = 0
JOB_FAILED = 1
USAGE = 2
AUTH = 3
BUDGET = 4
NOT_FOUND = 5
NO_CAPACITY = 6
NETWORK = 7
DETACHED = 130

_BY_PROBLEM = {
    "unauthenticated": AUTH,
    "forbidden": AUTH,
    "budget-exceeded": BUDGET,
    "time-limit-unmet": NO_CAPACITY,
    "not-found": NOT_FOUND,
    "unavailable": NETWORK,
}
_BY_END_REASON = {
    "succeeded": OK,
    "goal_reached": OK,
    "budget": BUDGET,
    "no_capacity": NO_CAPACITY,
    "quota": NO_CAPACITY,
}


def of_problem(code: str) -> int:
    """Return the exit code for a problem code of the service."""
    return _BY_PROBLEM.get(code, USAGE)


def of_job(state: str, end_reason: str | None, wait_reason: str | None = None) -> int:
    """Return the exit code for a job that was followed until it ended or paused."""
    if state == "paused":
        return BUDGET if wait_reason == "budget" else DETACHED
    return _BY_END_REASON.get(end_reason or "", JOB_FAILED)

# SPDX-License-Identifier: Apache-2.0
"""Which exit code follows from a problem of the service, and from how a job ended."""

from __future__ import annotations

from shoestring_core import rest
from shoestring_core.exit_codes import ExitCode

_BY_PROBLEM = {
    "unauthenticated": ExitCode.AUTH,
    "forbidden": ExitCode.AUTH,
    "budget-exceeded": ExitCode.BUDGET,
    "deadline-unmet": ExitCode.NO_CAPACITY,
    "time-limit-unmet": ExitCode.NO_CAPACITY,
    "not-found": ExitCode.NOT_FOUND,
    "unavailable": ExitCode.NETWORK,
}


def of_problem(code: str) -> ExitCode:
    """Return the exit code for a problem code of the service."""
    return _BY_PROBLEM.get(code, ExitCode.USAGE)


def of_job(job: rest.Job) -> ExitCode:
    """Return the exit code for a job that was followed until it ended or paused."""
    if job.end_reason is not None:
        return job.end_reason.exit_code
    return ExitCode.BUDGET if job.wait_reason == "budget" else ExitCode.DETACHED

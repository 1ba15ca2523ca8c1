# SPDX-License-Identifier: Apache-2.0
"""Concurrency caps: how many jobs of a team or a member run at once, and how many GPUs they have."""

from __future__ import annotations

from collections.abc import Sequence

from shoestring_core.decide.queue import AccountBalance
from shoestring_core.wording import waits


def find_jobs_cap(balances: Sequence[AccountBalance]) -> waits.JobsAtCap | None:
    """Of the first of a job's accounts, its own first, that may run no other job now; None: all may."""
    for balance in balances:
        if balance.max_jobs is not None and balance.runs_all_it_may:
            return waits.JobsAtCap(balance.name, balance.jobs, balance.max_jobs)
    return None


def find_gpus_cap(balances: Sequence[AccountBalance], needed: int) -> tuple[AccountBalance, waits.GpusAtCap] | None:
    """The first of a job's accounts, its own first, that may not have so many more GPUs now; None: all may."""
    for balance in balances:
        if balance.max_gpus is not None and balance.gpus + needed > balance.max_gpus:
            return balance, waits.GpusAtCap(balance.name, needed, balance.gpus, balance.max_gpus)
    return None


def free_gpus(balances: Sequence[AccountBalance]) -> int | None:
    """How many more all of a job's accounts may have now; None: there is no cap."""
    free: int | None = None
    for balance in balances:
        if balance.max_gpus is not None:
            left = max(0, balance.max_gpus - balance.gpus)
            free = left if free is None else min(free, left)
    return free

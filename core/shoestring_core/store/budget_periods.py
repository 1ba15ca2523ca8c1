# SPDX-License-Identifier: Apache-2.0
"""Borders of budgets: the period that has ended is rolled over, and jobs that waited for the next one resume."""

from __future__ import annotations

from uuid import UUID

from shoestring_core.store import ledger
from shoestring_core.store.fleet import gangs
from shoestring_core.store.transactions import Write


def roll_over(db: Write, account: UUID, border: int) -> bool:
    """Roll a budget over at a border of `ledger.due_borders`; False if another worker has.

    Jobs that its exhaustion paused are queued, also where the next period begins with nothing: they wait there.
    """
    period = ledger.begin_roll_over(db, account, border)
    if period is None:
        return False
    gangs.resume_jobs_paused_by_budget(db, account, "ledger")
    ledger.roll_over(db, period)
    return True

# SPDX-License-Identifier: Apache-2.0
"""Concurrency caps: how many jobs and GPUs of a team or member may run at once. They move no money."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import update

from shoestring_core.events import ConcurrencyChange
from shoestring_core.store.ledger.accounts import load_account, teams_below, title
from shoestring_core.store.tables import AccountRow, SchedulerRow
from shoestring_core.store.transactions import Write
from shoestring_core.wording import budget


def set_concurrency(
    db: Write, account_id: UUID, max_jobs: int | None, max_gpus: int | None, *, actor: str, reason: str
) -> AccountRow:  # fmt: skip
    """Change how many jobs and GPUs of a team or member may run at once; None: there is no cap. Running jobs continue.

    reason  in the words of who changes it
    """
    # Of a plan that was made with other caps nothing more is applied.
    db.execute(update(SchedulerRow).values(plan_version=SchedulerRow.plan_version + 1))
    before = load_account(db, account_id)
    db.execute(update(AccountRow).where(AccountRow.id == account_id).values(max_jobs=max_jobs, max_gpus=max_gpus))
    changed = budget.ConcurrencyChanged(
        title(db, before), max_jobs, max_gpus, before.max_jobs, before.max_gpus, reason
    )  # fmt: skip
    data = ConcurrencyChange(account=account_id, max_jobs=max_jobs, max_gpus=max_gpus)
    for team in teams_below(db, before):
        db.event(data, team=team, actor=actor, reason=changed)
    db.request_tick()
    return load_account(db, account_id)

# SPDX-License-Identifier: Apache-2.0
"""Limits: what an account may spend."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import update

from shoestring_core import money
from shoestring_core.errors import PreconditionFailed
from shoestring_core.events import LimitChange
from shoestring_core.store.ledger.accounts import load_account, teams_below, title
from shoestring_core.store.ledger.balances import positive_part
from shoestring_core.store.ledger.feed import record_alarm
from shoestring_core.store.tables import AccountRow
from shoestring_core.store.transactions import Write
from shoestring_core.wording import budget


def tightest_account(accounts: Iterable[AccountRow]) -> AccountRow | None:
    """The account with the smallest limit; None if nothing is limited."""
    limited = [row for row in accounts if row.limit_micro is not None]
    return min(limited, key=lambda row: row.limit_micro or 0, default=None)


def set_limit(
    db: Write, account: UUID, limit: int | None, *, actor: str, reason: str, if_version: int | None = None
) -> AccountRow:
    """Change what an account may spend; None removes the limit. `reason`: in the words of who changes it.

    A limit below what is already posted and held makes an overdraft, with an alarm: the machines of the jobs below
    checkpoint and end. Raises PreconditionFailed if `if_version` isn't the account's version any more.
    """
    before = load_account(db, account)
    version, limit_before, overdraft_before = before.version, before.limit_micro, before.overdraft
    guard = AccountRow.version == (version if if_version is None else if_version)
    change = update(AccountRow).where(AccountRow.id == account, guard)
    overdraft = 0 if limit is None else positive_part(AccountRow.posted + AccountRow.held - limit)
    if db.execute(change.values(limit_micro=limit, version=AccountRow.version + 1, overdraft=overdraft)) != 1:
        raise PreconditionFailed(
            "The budget has changed since you read it.", hint="Get the budget again, then retry with its new ETag."
        )
    after = load_account(db, account)
    name, data = title(db, after), LimitChange(account=account, limit=_text(limit), before=_text(limit_before))
    changed = budget.LimitChanged(name, _text(limit), _text(limit_before), reason)
    for team in teams_below(db, after):
        db.event(data, team=team, actor=actor, reason=changed)
        if after.overdraft > overdraft_before:
            below = budget.LimitBelowUse(name, money.to_decimal(after.overdraft))
            record_alarm(db, team, "limit_lowered", [after], actor=actor, reason=below)
    db.request_tick()
    return after


def _text(amount: int | None) -> str | None:
    return None if amount is None else money.to_decimal(amount)

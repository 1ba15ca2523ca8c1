# SPDX-License-Identifier: Apache-2.0
"""Balances: the guarded updates of an account and all above it, in the order in which accounts are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, case, or_, update

from shoestring_core import money
from shoestring_core.errors import BudgetExceeded
from shoestring_core.store.ledger.accounts import ancestors, load_account, period_limit, period_use, title
from shoestring_core.store.ledger.soft_lines import record_reached
from shoestring_core.store.tables import AccountRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording import budget


@dataclass(frozen=True)
class BalanceChange:
    posted: int = 0
    held: int = 0


def hold_amounts(db: Write, amounts: Mapping[UUID, int]) -> None:
    """Hold on each account and all above it. Raises BudgetExceeded where a limit doesn't allow it."""
    changed = []
    for account, change in _with_ancestors(db, {leaf: BalanceChange(held=amount) for leaf, amount in amounts.items()}):
        total = AccountRow.posted + AccountRow.held + change.held
        within_limit = or_(AccountRow.limit_micro.is_(None), total <= AccountRow.limit_micro)
        guarded = update(AccountRow).where(AccountRow.id == account.id, AccountRow.overdraft == 0, within_limit)
        held = db.sql.scalar(guarded.values(held=AccountRow.held + change.held).returning(AccountRow))
        if held is None:
            raise _budget_exceeded(db, account.id, change.held)
        changed.append(held)
    for row in changed:
        record_reached(db, row)


def apply_changes(
    db: Write, changes: Mapping[UUID, BalanceChange], *, may_overdraw: bool = False
) -> list[AccountRow]:  # fmt: skip
    """Change each account and all above it; returns them. An overdraft shrinks to the excess, or grows if it may."""
    changed = _with_ancestors(db, changes)
    for account, change in changed:
        total = AccountRow.posted + AccountRow.held + (change.posted + change.held)
        over = positive_part(total - AccountRow.limit_micro)
        shrunk = case((AccountRow.overdraft < over, AccountRow.overdraft), else_=over)
        db.execute(
            update(AccountRow)
            .where(AccountRow.id == account.id)
            .values(
                posted=AccountRow.posted + change.posted,
                held=AccountRow.held + change.held,
                overdraft=over if may_overdraw else shrunk,
            )
        )
    rows = [load_account(db, account.id) for account, _ in changed]
    for row in rows:
        record_reached(db, row)
    return rows


def positive_part(difference: ColumnElement[int]) -> ColumnElement[int]:
    """`difference` where it is positive; 0 elsewhere, and where it is NULL: there is no limit."""
    return case((difference > 0, difference), else_=0)


def _with_ancestors(db: Write, changes: Mapping[UUID, BalanceChange]) -> list[tuple[AccountRow, BalanceChange]]:
    """Each account concerned with its change, in the order in which accounts are written."""
    accounts: dict[UUID, AccountRow] = {}
    posted, held = Counter[UUID](), Counter[UUID]()
    for leaf, change in changes.items():
        for account in ancestors(db, leaf):
            accounts[account.id] = account
            posted[account.id] += change.posted
            held[account.id] += change.held
    in_order = sorted(accounts.values(), key=lambda account: (-account.level, account.id))
    return [(account, BalanceChange(posted[account.id], held[account.id])) for account in in_order]


def _budget_exceeded(db: Read, account_id: UUID, need: int) -> BudgetExceeded:
    account = load_account(db, account_id)
    available = _available(account)
    shortage: dict[str, Any] = {
        "account": str(account.id),
        "account_title": title(db, account),
        "need": money.to_decimal(need),
        "left": money.to_decimal(available),
        "short_by": money.to_decimal(need - available),
        "held_suffices": account.held >= need - available,
    }
    if account.overdraft > 0:
        return BudgetExceeded(budget.AccountOverdrawn(overdraft=money.to_decimal(account.overdraft), **shortage))
    limit, used = money.to_decimal(period_limit(account) or 0), money.to_decimal(sum(period_use(account)))
    return BudgetExceeded(budget.AccountExhausted(limit=limit, used=used, **shortage))


def _available(account: AccountRow) -> int:
    """What this account alone may still hold; 0 without a limit."""
    return max(0, (account.limit_micro or 0) - account.posted - account.held)

# SPDX-License-Identifier: Apache-2.0
"""Commitments: money set aside for a job before it has machines. It is held, on the job's account and all above."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

from sqlalchemy import bindparam, select, update

from shoestring_core.errors import BudgetExceeded
from shoestring_core.store.ledger.balances import BalanceChange, apply_changes, hold_amounts
from shoestring_core.store.tables import CommitmentRow
from shoestring_core.store.transactions import Read, Write


def commit_money(db: Write, account: UUID, amount: int) -> None:
    """Set money aside for a job. Raises BudgetExceeded, naming the account that is short."""
    db.insert_new(CommitmentRow, account=account, amount=amount)
    hold_amounts(db, {account: amount})


def load_commitments(db: Read, accounts: Iterable[UUID]) -> dict[UUID, int]:
    """What is still set aside, of those accounts that have a commitment."""
    return {row.account: row.amount for row in db.rows(_COMMITMENTS, accounts=list(accounts))}


def adjust_commitment(db: Write, account: UUID, amount: int) -> int:
    """Set aside as much, unless that is more and a budget doesn't have it. Returns what is set aside."""
    before = _lock(db, [account]).get(account)
    if before is None or before == amount:
        return before or 0
    try:
        with db.savepoint():
            _change(db, account, amount - before)
            if amount > before:
                hold_amounts(db, {account: amount - before})
            else:
                apply_changes(db, {account: BalanceChange(held=amount - before)})
                db.request_tick()  # what is free now may be what another job waits for
    except BudgetExceeded:
        return before
    return amount


def draw(db: Write, amounts: Mapping[UUID, int]) -> dict[UUID, int]:
    """Take holds out of the commitments of their accounts. Returns what budgets are to be asked for, by account: no
    account whose commitment was enough."""
    left = dict(amounts)
    for account, committed in sorted(_lock(db, amounts).items()):
        drawn = min(committed, amounts[account])
        _change(db, account, -drawn)
        left[account] -= drawn
        if not left[account]:
            del left[account]
    return left


def give_back(db: Write, account: UUID, amount: int) -> int:
    """Return what is left of a hold to its account's commitment, if it has one. Returns what goes back to budgets."""
    return 0 if _change(db, account, amount) else amount


def _lock(db: Write, accounts: Iterable[UUID]) -> dict[UUID, int]:
    """The commitments of these accounts, which nobody else changes until the end of the transaction."""
    committed = load_commitments(db, accounts)
    for account in sorted(committed):
        _change(db, account, 0)
    return load_commitments(db, committed) if committed else {}


def _change(db: Write, account: UUID, difference: int) -> bool:
    change = update(CommitmentRow).where(CommitmentRow.account == account)
    return db.execute(change.values(amount=CommitmentRow.amount + difference)) == 1


_COMMITMENTS = select(CommitmentRow.account, CommitmentRow.amount).where(
    CommitmentRow.account.in_(bindparam("accounts", expanding=True))
)

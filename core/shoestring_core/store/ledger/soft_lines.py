# SPDX-License-Identifier: Apache-2.0
"""Soft lines of budgets: what is recorded when use reaches one, once for each limit.

The highest line that was reached is kept with the account, so that use that falls and rises again warns only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import update

from shoestring_core import money
from shoestring_core.decide import soft_lines
from shoestring_core.events import SoftLineReached, SoftLinesChange
from shoestring_core.store.ledger.accounts import load_account, period_limit, period_use, teams_below, title
from shoestring_core.store.tables import AccountRow
from shoestring_core.store.transactions import Write
from shoestring_core.wording import budget

BUDGETS = ("org", "team", "member")
"""Kinds of accounts that have soft lines."""


def lines_of(account: AccountRow) -> Sequence[int]:
    """Percent of the account's limit, rising."""
    if account.kind not in BUDGETS:
        return ()
    return soft_lines.DEFAULT if account.soft_lines is None else account.soft_lines


def record_reached(db: Write, account: AccountRow) -> None:
    """Tell the teams whose spending an account limits which lines its use has reached.

    account  its row as it is now, locked by this transaction
    """
    used, limit_micro = sum(period_use(account)), period_limit(account)
    reached = soft_lines.newly_reached(lines_of(account), account.soft_line_reached, used, limit_micro)
    if not reached:
        return
    db.execute(update(AccountRow).where(AccountRow.id == account.id).values(soft_line_reached=reached[-1]))
    limit, name = money.to_decimal(limit_micro or 0), title(db, account)
    for team in teams_below(db, account):
        for line in reached:
            data = SoftLineReached(account=account.id, percent=line, limit=limit, used=money.to_decimal(used))
            reason = budget.SoftLineReached(name, line, limit, money.to_decimal(used))
            db.event(data, team=team, actor="ledger", reason=reason)


def set_soft_lines(db: Write, account_id: UUID, lines: Sequence[int], *, actor: str, reason: str) -> AccountRow:
    """Change a budget's lines. One that use is past already, and above what was reached before, is reached now.

    lines   percent, as `decide.soft_lines.checked` returns them
    reason  in the words of who changes it
    """
    db.execute(update(AccountRow).where(AccountRow.id == account_id).values(soft_lines=list(lines)))
    account = load_account(db, account_id)
    changed = budget.SoftLinesChanged(title(db, account), tuple(lines), reason)
    for team in teams_below(db, account):
        db.event(SoftLinesChange(account=account_id, percents=tuple(lines)), team=team, actor=actor, reason=changed)
    record_reached(db, account)
    return load_account(db, account_id)

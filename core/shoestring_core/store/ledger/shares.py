# SPDX-License-Identifier: Apache-2.0
"""Shares: what teams and members spent lately, their weights and guaranteed rates, which together order the queue.

A total is kept for each, and decays when it is read: no history is summed. It is no part of the ledger: it moves no
money, and nothing is limited by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import select, update

from shoestring_core import money
from shoestring_core.decide.queue import decayed
from shoestring_core.events import GuaranteedRateChange, WeightChange
from shoestring_core.store.ledger.accounts import load_account, teams_below, title
from shoestring_core.store.tables import AccountRow, SchedulerRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording import budget

SHARING = ("team", "member")
"""Kinds of accounts that share what is above them."""


def recent_spending(db: Read, account: AccountRow, half_life: int) -> int:
    """Micro-dollars that an account spent, each halved with every half-life since."""
    return decayed(account.recent, db.now - account.recent_at, half_life)


def record_spending(db: Write, accounts: Iterable[AccountRow], amount: int) -> None:
    """Add to what these accounts spent lately. Their rows are locked, and as they are now."""
    half_life = load_half_life(db)
    for account in accounts:
        if account.kind in SHARING:
            recent = recent_spending(db, account, half_life) + amount
            db.execute(update(AccountRow).where(AccountRow.id == account.id).values(recent=recent, recent_at=db.now))


def load_half_life(db: Read) -> int:
    """µs."""
    ((half_life,),) = db.rows(_HALF_LIFE)
    return int(half_life)


def set_half_life(db: Write, half_life: int) -> None:
    """From now on, what was spent decays so fast."""
    db.execute(
        update(SchedulerRow).where(SchedulerRow.recent_half_life != half_life).values(recent_half_life=half_life)
    )


def set_weight(db: Write, account_id: UUID, weight: int, *, actor: str, reason: str) -> AccountRow:
    """Change the weight of a team or member; those who share with it get an event.

    reason  in the words of who changes it
    """
    before = load_account(db, account_id)
    assert before.parent is not None
    data = WeightChange(account=account_id, weight=weight, before=before.weight)
    changed = budget.WeightChanged(title(db, before), weight, before.weight, reason)
    db.execute(update(AccountRow).where(AccountRow.id == account_id).values(weight=weight))
    for team in teams_below(db, load_account(db, before.parent)):
        db.event(data, team=team, actor=actor, reason=changed)
    db.request_tick()
    return load_account(db, account_id)


def set_guaranteed_rate(db: Write, account_id: UUID, rate: int, *, actor: str, reason: str) -> AccountRow:
    """Change what a team may use before it borrows from others, in micro-dollars an hour. All teams get an event.

    reason  in the words of who changes it
    """
    before = load_account(db, account_id)
    assert before.parent is not None
    dollars = money.to_decimal(rate), money.to_decimal(before.guaranteed_rate)
    data = GuaranteedRateChange(account=account_id, rate=dollars[0], before=dollars[1])
    changed = budget.GuaranteedRateChanged(title(db, before), *dollars, reason)
    db.execute(update(AccountRow).where(AccountRow.id == account_id).values(guaranteed_rate=rate))
    for team in teams_below(db, load_account(db, before.parent)):
        db.event(data, team=team, actor=actor, reason=changed)
    db.request_tick()
    return load_account(db, account_id)


_HALF_LIFE = select(SchedulerRow.recent_half_life)

# SPDX-License-Identifier: Apache-2.0
"""Requests for more dollars: a member asks with a sentence, and an admin approves or denies it, once.

An approval grants the dollars in the same transaction. An open request that is past `expires_at` can't be decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select, update

from shoestring_core import money
from shoestring_core.decide.grants import Balance, effect_of_grant
from shoestring_core.errors import BudgetUnmovable, InvalidState, NotFound, TooMany
from shoestring_core.events import BudgetRequestChange
from shoestring_core.store import ledger
from shoestring_core.store.fleet import gangs
from shoestring_core.store.identity import Principal
from shoestring_core.store.tables import AccountRow, BudgetRequestRow, UserRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording import Reason, budget

DAY = 86_400_000_000
EXPIRES_DAYS = 14
MAX_OPEN = 20
"""Open requests of a member in a team."""


def ask(db: Write, caller: Principal, amount: int, why: str, account: UUID | None = None) -> BudgetRequestRow:
    """Ask for dollars for the caller's own limit, or for the team's if they have none, or for the one that is named.

    why  in the words of the member
    Raises BudgetUnmovable for an amount of nothing or a budget without a limit, NotFound for one that doesn't pay for
    the caller's jobs, TooMany.
    """
    row = _payer(db, caller, account)
    if amount <= 0:
        raise BudgetUnmovable(budget.NothingToMove())
    if row.limit_micro is None:
        raise BudgetUnmovable(budget.NoLimitToMove(ledger.title(db, row)))
    mine = (BudgetRequestRow.team == caller.team, BudgetRequestRow.user_id == caller.user)
    undecided = (BudgetRequestRow.state == "open", BudgetRequestRow.expires_at > db.now)
    if (db.sql.scalar(select(func.count()).where(*mine, *undecided)) or 0) >= MAX_OPEN:
        raise TooMany(f"You have {MAX_OPEN} open requests.", hint="Wait until an admin has decided them.")
    request = BudgetRequestRow(
        id=uuid7(), team=caller.team, user_id=caller.user, account=row.id, amount=amount, why=why, state="open",
        created_at=db.now, expires_at=db.now + EXPIRES_DAYS * DAY, decided_at=None, decided_by=None,
    )  # fmt: skip
    db.insert(request)
    asked = budget.Requested(caller.user_name, ledger.title(db, row), money.to_decimal(amount), why)
    _record(db, request, caller.actor, asked)
    return request


def decide(db: Write, caller: Principal, request: UUID, *, approve: bool, note: str) -> BudgetRequestRow:
    """Approve or deny a request of the caller's team; the same decision again changes nothing.

    note  in the words of who decides
    Raises NotFound; InvalidState if it was decided otherwise, or has expired; what `ledger.grant` raises.
    """
    state = "approved" if approve else "denied"
    decidable = update(BudgetRequestRow).where(
        BudgetRequestRow.id == request,
        BudgetRequestRow.team == caller.team,
        BudgetRequestRow.state == "open",
        BudgetRequestRow.expires_at > db.now,
    )
    decided = decidable.values(state=state, decided_at=db.now, decided_by=caller.actor, note=note)
    is_new = db.execute(decided) == 1
    row = load(db, caller.team, request)
    if not is_new:
        if row.state == state:
            return row
        if row.state == "open":
            raise InvalidState(budget.RequestExpired(EXPIRES_DAYS))
        raise InvalidState(budget.DecidedBefore(row.decided_by or "", row.state == "approved"))
    if approve:
        gangs.resume_jobs_paused_by_budget(db, row.account, caller.actor)
        ledger.grant(db, row.account, row.amount, actor=caller.actor, reason=note or row.why)
    account, user = db.sql.get_one(AccountRow, row.account), db.sql.get_one(UserRow, row.user_id)
    amount = money.to_decimal(row.amount)
    reason = budget.RequestDecided(caller.actor, user.name, ledger.title(db, account), amount, approve, note)
    _record(db, row, caller.actor, reason)
    return row


def load(db: Read, team: UUID, request: UUID) -> BudgetRequestRow:
    """Raises NotFound."""
    mine = (BudgetRequestRow.id == request, BudgetRequestRow.team == team)
    row = db.sql.scalar(select(BudgetRequestRow).where(*mine))
    if row is None:
        raise NotFound("There is no such request.", hint="`shoestring budget requests` lists those of your team.")
    return row


def newest(db: Read, team: UUID, limit: int) -> Sequence[BudgetRequestRow]:
    """The team's requests, newest first."""
    mine = select(BudgetRequestRow).where(BudgetRequestRow.team == team)
    return db.sql.scalars(mine.order_by(BudgetRequestRow.created_at.desc(), BudgetRequestRow.id).limit(limit)).all()


def budgets(db: Read, requests: Sequence[BudgetRequestRow]) -> dict[UUID, AccountRow]:
    """The accounts that they are for, by id."""
    accounts = select(AccountRow).where(AccountRow.id.in_({row.account for row in requests}))
    return {row.id: row for row in db.sql.scalars(accounts)}


def askers(db: Read, requests: Sequence[BudgetRequestRow]) -> dict[UUID, str]:
    """The names of who asked, by user."""
    users = select(UserRow.id, UserRow.name).where(UserRow.id.in_({row.user_id for row in requests}))
    return dict(db.sql.execute(users).all())


def effect(db: Read, request: BudgetRequestRow) -> budget.GrantEffect | None:
    """What its approval would mean for others; None if nobody shares the budget, or its limit was removed since."""
    account, *above = ledger.ancestors(db, request.account)
    if not above or account.limit_micro is None:
        return None
    return effect_of_grant(_balance(db, account), request.amount, _balance(db, above[0]))


def _balance(db: Read, account: AccountRow) -> Balance:
    limit, used = account.limit_micro, account.posted + account.held
    return Balance(ledger.title(db, account), None if limit is None else limit - used)


def _payer(db: Read, caller: Principal, account: UUID | None) -> AccountRow:
    payers = [row for row in ledger.paying_accounts(db, caller.team, caller.user) if row.kind in ledger.SHARING]
    if account is None:
        return next((row for row in payers if row.limit_micro is not None), payers[-1])
    for row in payers:
        if row.id == account:
            return row
    raise NotFound("No such budget pays for your jobs.", hint="Ask for your own or your team's.")


def _record(db: Write, request: BudgetRequestRow, actor: str, reason: Reason) -> None:
    data = BudgetRequestChange.model_validate(
        {"request": request.id, "account": request.account, "amount": money.to_decimal(request.amount),
         "state": request.state}
    )  # fmt: skip
    db.event(data, team=request.team, actor=actor, reason=reason)

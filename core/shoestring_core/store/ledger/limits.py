# SPDX-License-Identifier: Apache-2.0
"""Limits: what an account may spend. Each change is kept: an adjustment, a grant, or one of a transfer's two sides."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import ColumnElement, case, delete, select, update

from shoestring_core import money
from shoestring_core.errors import BudgetUnmovable, PreconditionFailed
from shoestring_core.events import LimitChange
from shoestring_core.store.database_errors import RaceLost
from shoestring_core.store.ledger.accounts import load_account, period_limit, teams_below, title
from shoestring_core.store.ledger.balances import positive_part
from shoestring_core.store.ledger.feed import record_alarm
from shoestring_core.store.ledger.soft_lines import record_reached
from shoestring_core.store.tables import AccountRow, BudgetPeriodRow, LimitChangeRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording import Reason, budget


def tightest_account(accounts: Iterable[AccountRow]) -> AccountRow | None:
    """The account with the smallest limit; None if nothing is limited."""
    limited = [row for row in accounts if row.limit_micro is not None]
    return min(limited, key=lambda row: period_limit(row) or 0, default=None)


def was_limited(db: Read, account: AccountRow) -> bool:
    """Whether anybody has ever set a limit of the account, if only to remove it again."""
    changes = select(LimitChangeRow.version).where(LimitChangeRow.account == account.id).limit(1)
    return account.limit_micro is not None or db.sql.scalar(changes) is not None


def set_limit(
    db: Write, account: UUID, limit: int | None, *, actor: str, reason: str, if_version: int | None = None
) -> AccountRow:
    """Adjust what an account may spend in its period; None removes the limit. `reason`: in the words of who changes it.

    Each month that follows begins with the same; without a limit the budget has no periods.

    A limit below what is already posted and held makes an overdraft, with an alarm: the machines of the jobs below
    checkpoint and end. Raises PreconditionFailed if `if_version` isn't the account's version any more, without one
    RaceLost if another changed the account meanwhile.
    """
    before = load_account(db, account)
    version, limit_before, overdraft_before = before.version, period_limit(before), before.overdraft
    guard = AccountRow.version == (version if if_version is None else if_version)
    whole = None if limit is None else AccountRow.period_base + limit
    overdraft = 0 if whole is None else positive_part(AccountRow.posted + AccountRow.held - whole)
    if not _update(db, account, guard, limit_micro=whole, overdraft=overdraft):
        if if_version is None:
            raise RaceLost("The budget keeps changing.", hint="Try again.")
        raise PreconditionFailed(
            "The budget has changed since you read it.", hint="Get the budget again, then retry with its new ETag."
        )
    period = BudgetPeriodRow.account == account  # after the account's row, as settlements do
    db.execute(
        delete(BudgetPeriodRow).where(period)
        if limit is None
        else update(BudgetPeriodRow).where(period).values(amount=limit)
    )
    after = load_account(db, account)
    name = title(db, after)
    changed = budget.LimitChanged(name, _text(limit), _text(limit_before), reason)
    record_limit_change(db, after, limit_before, "adjusted", actor=actor, reason=changed)
    if after.overdraft > overdraft_before:
        below = budget.LimitBelowUse(name, money.to_decimal(after.overdraft))
        for team in teams_below(db, after):
            record_alarm(db, team, "limit_lowered", [after], actor=actor, reason=below)
    return load_account(db, account)


def grant(db: Write, account: UUID, amount: int, *, actor: str, reason: str) -> AccountRow:
    """Add dollars to what an account may spend. `reason`: in the words of who grants them.

    Raises BudgetUnmovable, and changes nothing: nothing to add, no limit to add it to, or more than a limit can be.
    """
    name = title(db, load_account(db, account))
    _check_amount(amount)
    if not _raise(db, account, amount):
        raise _not_raised(db, account)
    after = load_account(db, account)
    granted = budget.Granted(name, money.to_decimal(amount), _text(period_limit(after)), reason)
    record_limit_change(db, after, _limit(after) - amount, "granted", actor=actor, reason=granted)
    return load_account(db, account)


def transfer(
    db: Write, source: UUID, target: UUID, amount: int, *, actor: str, reason: str
) -> tuple[AccountRow, AccountRow]:
    """Move dollars that one account has left to another below the same account: what both may spend stays the same.

    Returns both as they are now. Raises BudgetUnmovable, and changes nothing, as `grant` does; also if both are the
    same account, lie below different ones, or the source has less left, or an overdraft.
    """
    giving, taking = load_account(db, source), load_account(db, target)
    names = title(db, giving), title(db, taking)
    _check_amount(amount)
    if source == target:
        raise BudgetUnmovable(budget.TransferToItself(names[0]))
    if giving.parent is None or giving.parent != taking.parent:
        raise BudgetUnmovable(budget.TransferAcrossBudgets(*names))
    with db.savepoint():
        for account in sorted((source, target)):  # the order in which accounts are written
            moved = _lower(db, account, amount) if account == source else _raise(db, account, amount)
            if not moved:
                raise _not_lowered(db, source, amount) if account == source else _not_raised(db, target)
    given, taken = load_account(db, source), load_account(db, target)
    moved_reason = budget.Transferred(*names, money.to_decimal(amount), reason)
    for after, other, difference in ((given, target, -amount), (taken, source, amount)):
        before = _limit(after) - difference
        record_limit_change(db, after, before, "transferred", actor=actor, reason=moved_reason, counterpart=other)
    return load_account(db, source), load_account(db, target)


def _lower(db: Write, account: UUID, amount: int) -> bool:
    left = AccountRow.limit_micro - AccountRow.posted - AccountRow.held
    guard = (left >= amount) & (AccountRow.overdraft == 0)
    return _update(db, account, guard, limit_micro=AccountRow.limit_micro - amount)


def _raise(db: Write, account: UUID, amount: int) -> bool:
    raised = AccountRow.limit_micro + amount
    over = positive_part(AccountRow.posted + AccountRow.held - raised)
    shrunk = case((AccountRow.overdraft < over, AccountRow.overdraft), else_=over)
    return _update(
        db, account, raised - AccountRow.period_base <= money.MAX_MICRO, limit_micro=raised, overdraft=shrunk
    )


def _update(db: Write, account: UUID, guard: ColumnElement[bool], **values: object) -> bool:
    change = update(AccountRow).where(AccountRow.id == account, guard)
    moved = change.values(version=AccountRow.version + 1, soft_line_reached=0, forecast_told=False, **values)
    return db.execute(moved) == 1


def _check_amount(amount: int) -> None:
    if amount <= 0:
        raise BudgetUnmovable(budget.NothingToMove())


def _not_raised(db: Write, account: UUID) -> BudgetUnmovable:
    row = load_account(db, account)
    if row.limit_micro is None:
        return BudgetUnmovable(budget.NoLimitToMove(title(db, row)))
    return BudgetUnmovable(budget.LimitTooLarge(title(db, row), money.to_decimal(money.MAX_MICRO)))


def _not_lowered(db: Write, account: UUID, amount: int) -> BudgetUnmovable:
    row = load_account(db, account)
    if row.limit_micro is None:
        return BudgetUnmovable(budget.NoLimitToMove(title(db, row)))
    left = 0 if row.overdraft else row.limit_micro - row.posted - row.held
    return BudgetUnmovable(budget.LessLeft(title(db, row), money.to_decimal(left), money.to_decimal(amount)))


def _limit(account: AccountRow) -> int:
    limit = period_limit(account)
    assert limit is not None
    return limit


def record_limit_change(
    db: Write,
    after: AccountRow,
    limit_before: int | None,
    kind: str,
    *,
    actor: str,
    reason: Reason,
    counterpart: UUID | None = None,
) -> None:
    """Keep a change of a limit, tell the teams whose spending it limits, and have the queue looked at.

    Soft lines are reset for the new limit.
    """
    db.insert(
        LimitChangeRow(
            account=after.id, version=after.version, kind=kind, limit_before=limit_before,
            limit_after=period_limit(after), base=after.period_base, counterpart=counterpart, at=db.now, actor=actor,
            reason=reason.as_json(),
        )
    )  # fmt: skip
    data = LimitChange(account=after.id, limit=_text(period_limit(after)), before=_text(limit_before))
    for team in teams_below(db, after):
        db.event(data, team=team, actor=actor, reason=reason)
    record_reached(db, after)
    db.request_tick()


def _text(amount: int | None) -> str | None:
    return None if amount is None else money.to_decimal(amount)

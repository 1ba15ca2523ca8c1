# SPDX-License-Identifier: Apache-2.0
"""Periods of budgets: set, and rolled over at their borders. `decide.periods` says what a period begins with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import aliased

from shoestring_core import money
from shoestring_core.decide import periods
from shoestring_core.errors import BudgetUnmovable, StaleTransition
from shoestring_core.store.ledger.accounts import load_account, period_limit, title
from shoestring_core.store.ledger.balances import positive_part
from shoestring_core.store.ledger.limits import record_limit_change
from shoestring_core.store.tables import AccountRow, BudgetPeriodRow, CarriedHoldRow, CommitmentRow, HoldRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording import budget


@dataclass(frozen=True)
class Plan:
    """A period as it is asked for. `ends_at`: µs UTC; `cap`: micro-dollars that carry over at most, None: all.

    begins_at  when it begins; None: it has
    """

    kind: periods.PeriodKind
    time_zone: str
    ends_at: int
    rollover: periods.Rollover = "none"
    cap: int | None = None
    begins_at: int | None = None


def set_period(db: Write, account_id: UUID, plan: Plan | None, *, actor: str, reason: str) -> AccountRow:
    """Give a budget periods, change them, or with None make it one-off again. Its limit and use stay as they are.

    Each month, and a term that begins later, begins with what the budget has as limit now, or the one set since. Until
    then all stays as it is; at the border what is unspent carries over or expires, as at the end of a month.

    reason  in the words of who changes it
    Raises BudgetUnmovable if the budget has no limit.
    """
    # The account's row first: a concurrent change of its period waits here, and then sees this one's row.
    db.execute(update(AccountRow).where(AccountRow.id == account_id).values(version=AccountRow.version + 1))
    account = load_account(db, account_id)
    before = load_periods(db, [account_id]).get(account_id)
    db.execute(delete(BudgetPeriodRow).where(BudgetPeriodRow.account == account_id))
    if plan is not None:
        is_month = before is not None and before.kind == "month"
        amount = before.amount if before and is_month else period_limit(account)
        if amount is None:
            raise BudgetUnmovable(budget.NoLimitForPeriod(title(db, account)))
        db.insert(
            BudgetPeriodRow(
                account=account_id, kind=plan.kind, amount=amount, time_zone=plan.time_zone, starts_at=db.now,
                ends_at=plan.begins_at or plan.ends_at, then_ends_at=plan.begins_at and plan.ends_at,
                rollover=plan.rollover, rollover_cap=plan.cap,
                carried_over=before.carried_over if before and is_month else 0,
            )
        )  # fmt: skip
    ends = None if plan is None else periods.border_text(plan.ends_at, plan.time_zone)
    begins = plan and plan.begins_at and periods.border_text(plan.begins_at, plan.time_zone)
    kind = "one_off" if plan is None else plan.kind
    carries_over = plan is not None and plan.rollover != "none"
    changed = budget.PeriodChanged(title(db, account), kind, ends, carries_over, reason, begins or None)
    record_limit_change(db, account, period_limit(account), "adjusted", actor=actor, reason=changed)
    return account


def due_borders(db: Read) -> Sequence[tuple[UUID, int]]:
    """Budgets whose period has ended, and when it did."""
    due = select(BudgetPeriodRow.account, BudgetPeriodRow.ends_at).where(
        BudgetPeriodRow.ends_at <= db.now, BudgetPeriodRow.closed.is_(False)
    )
    return [(account, border) for account, border in db.sql.execute(due.order_by(BudgetPeriodRow.account))]


def load_periods(db: Read, accounts: Iterable[UUID]) -> dict[UUID, BudgetPeriodRow]:
    """The periods of those accounts that have any."""
    rows = db.sql.scalars(select(BudgetPeriodRow).where(BudgetPeriodRow.account.in_(set(accounts))))
    return {row.account: row for row in rows}


def begin_roll_over(db: Write, account: UUID, border: int) -> BudgetPeriodRow | None:
    """Take the period that ended at `border` on: None if another transaction has. `roll_over` follows in this one."""
    mine = (BudgetPeriodRow.account == account, BudgetPeriodRow.ends_at == border, BudgetPeriodRow.closed.is_(False))
    period = db.sql.scalar(select(BudgetPeriodRow).where(*mine))
    if period is None or border > db.now:
        return None
    next_end = period.then_ends_at
    if next_end is None and period.kind == "month":
        next_end = periods.end_of_month(border, period.time_zone)
    following = {"starts_at": border, "ends_at": next_end or border, "closed": next_end is None}
    moved = update(BudgetPeriodRow).where(*mine).values(then_ends_at=None, **following)
    return period if db.execute(moved) == 1 else None


def roll_over(db: Write, period: BudgetPeriodRow) -> AccountRow:
    """Begin the next month, or a term, or end one, with the row in the ledger that says so.

    period  as it was before `begin_roll_over`
    Raises StaleTransition if the limit was removed at the same time.
    """
    locked = update(AccountRow).where(AccountRow.id == period.account, AccountRow.limit_micro.is_not(None))
    row = db.sql.scalar(
        locked.values(version=AccountRow.version + 1, soft_line_reached=0, forecast_told=False).returning(AccountRow)
    )
    if row is None or row.limit_micro is None:
        raise StaleTransition(budget.NoLimitForPeriod(str(period.account)))
    used, limit_before = row.posted + row.held - _committed_below(db, row), period_limit(row)
    terms = load_periods(db, [row.id])[row.id]  # both rows are locked: nobody changes the amount any more
    amount = 0 if terms.closed else terms.amount
    opening = periods.open_period(row.limit_micro, used, amount, terms.rollover, terms.rollover_cap)
    carried = _carry_holds(db, row)
    db.execute(
        update(AccountRow)
        .where(AccountRow.id == row.id)
        .values(
            limit_micro=opening.limit, period_base=opening.base, carried=carried,
            overdraft=max(0, row.posted + row.held - opening.limit),
        )
    )  # fmt: skip
    carried_over = update(BudgetPeriodRow).where(BudgetPeriodRow.account == row.id)
    db.execute(carried_over.values(carried_over=opening.carried_over))
    after = load_account(db, row.id)
    reason = budget.RolledOver(
        title(db, after),
        periods.border_text(period.ends_at, period.time_zone),
        money.to_decimal(period_limit(after) or 0),
        money.to_decimal(opening.carried_over),
        money.to_decimal(opening.expired),
    )
    record_limit_change(db, after, limit_before, "rolled_over", actor="ledger", reason=reason)
    return load_account(db, row.id)


def _committed_below(db: Read, account: AccountRow) -> int:
    """What is committed to jobs below an account: the period that begins pays for that."""
    below = select(func.sum(CommitmentRow.amount)).join(_JOB, _JOB.id == CommitmentRow.account)
    below = below.join(_MEMBER, _MEMBER.id == _JOB.parent).join(_TEAM, _TEAM.id == _MEMBER.parent)
    return int(db.sql.scalar(below.where(_is_below(account.id))) or 0)


def settle_carried(db: Write, hold: HoldRow, accounts: Iterable[AccountRow], spent: int, *, closed: bool) -> None:
    """Attribute what a hold spent or gave back to the period in which it was held.

    accounts  those above the hold, as they are now, locked by this transaction
    spent     micro-dollars that were just posted within it: first of what was held at the last border
    closed    the rest of the hold was just released
    """
    for account in accounts:
        if not account.carried:
            continue
        mine = (CarriedHoldRow.account == account.id, CarriedHoldRow.hold == hold.id)
        rest = db.sql.scalar(select(CarriedHoldRow.rest).where(*mine))
        if rest is None:
            continue
        consumed = min(rest, max(0, spent))
        given_back = rest - consumed if closed else 0
        if closed:
            db.execute(delete(CarriedHoldRow).where(*mine))
        else:
            db.execute(update(CarriedHoldRow).where(*mine).values(rest=rest - consumed))
        less = update(AccountRow).where(AccountRow.id == account.id)
        db.execute(less.values(carried=AccountRow.carried - consumed - given_back))
        if given_back:
            _return_to_last_period(db, account.id, given_back)


def _return_to_last_period(db: Write, account_id: UUID, amount: int) -> None:
    """What a hold of the last period did not spend is unspent money of that period: it carries over, or expires."""
    before = load_account(db, account_id)
    period = load_periods(db, [account_id]).get(account_id)
    carried = amount  # of a budget that is one-off by now
    if period is not None:
        carried = periods.carry(amount, period.carried_over, period.rollover, period.rollover_cap)
        more = update(BudgetPeriodRow).where(BudgetPeriodRow.account == account_id)
        db.execute(more.values(carried_over=BudgetPeriodRow.carried_over + carried))
    limit = AccountRow.limit_micro - (amount - carried)
    db.execute(
        update(AccountRow)
        .where(AccountRow.id == account_id)
        .values(
            limit_micro=limit, period_base=AccountRow.period_base - amount, version=AccountRow.version + 1,
            overdraft=positive_part(AccountRow.posted + AccountRow.held - limit),
        )
    )  # fmt: skip
    after = load_account(db, account_id)
    given_back, expired = money.to_decimal(carried), money.to_decimal(amount - carried)
    reason = budget.HeldBeforeBorder(title(db, after), given_back, expired)
    record_limit_change(db, after, period_limit(before), "rolled_over", actor="ledger", reason=reason)


def _carry_holds(db: Write, account: AccountRow) -> int:
    """Note what is held below an account at its border; returns the sum.

    Nothing of an account that is overdrawn: what its holds give back pays for that.
    """
    db.execute(delete(CarriedHoldRow).where(CarriedHoldRow.account == account.id))
    if account.overdraft:
        return 0
    below = (
        select(HoldRow.id, HoldRow.amount - HoldRow.consumed)
        .join(_JOB, _JOB.id == HoldRow.account)
        .join(_MEMBER, _MEMBER.id == _JOB.parent)
        .join(_TEAM, _TEAM.id == _MEMBER.parent)
        .where(HoldRow.state == "open", HoldRow.amount > HoldRow.consumed)
        .where(_is_below(account.id))
    )
    held = {hold: int(rest) for hold, rest in db.sql.execute(below)}
    if held:
        rows = [{"account": account.id, "hold": hold, "rest": rest} for hold, rest in held.items()]
        db.insert_missing(CarriedHoldRow, rows)
    return sum(held.values())


def _is_below(account: UUID) -> ColumnElement[bool]:
    return or_(_JOB.parent == account, _MEMBER.parent == account, _TEAM.parent == account)


_JOB, _MEMBER, _TEAM = aliased(AccountRow), aliased(AccountRow), aliased(AccountRow)

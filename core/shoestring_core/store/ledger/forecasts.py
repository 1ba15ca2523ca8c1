# SPDX-License-Identifier: Apache-2.0
"""Forecasts of budgets: what was spent by the hour, and the alert when a limit won't last its period."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import case, func, or_, select, update
from sqlalchemy.orm import aliased

from shoestring_core import money
from shoestring_core.decide import periods
from shoestring_core.decide.forecast import DAY, HOUR, WINDOW, Forecast, forecast
from shoestring_core.events import ForecastAlert
from shoestring_core.store.ledger.accounts import load_account, period_limit, period_use, teams_below, title
from shoestring_core.store.ledger.periods import load_periods
from shoestring_core.store.tables import AccountRow, BudgetPeriodRow, TransferRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording import budget

HORIZON = 30 * DAY
"""How far the forecast of a budget looks that has no end."""
MAX_HISTORY = 400 * DAY


@dataclass(frozen=True)
class BudgetForecast:
    """`points`: (µs UTC, micro-dollars spent of the period by then), rising in time, the last one now.

    forecast  None: the budget has no limit, or too little was spent to say
    """

    starts_at: int
    ends_at: int
    points: Sequence[tuple[int, int]]
    forecast: Forecast | None


def load_forecast(db: Read, account: AccountRow) -> BudgetForecast:
    """What a budget spent in its period, and will have spent at its end; one-off: in 28 days, and in 30 more.

    A one-off budget that was first spent from later than 28 days ago begins with the hour of that, an unused one now.
    """
    period = load_periods(db, [account.id]).get(account.id)
    is_open = period is not None and not period.closed
    ends_at = period.ends_at if period is not None and is_open else db.now + HORIZON
    starts_at = max(period.starts_at, db.now - MAX_HISTORY) if period is not None else db.now - WINDOW
    spent, held = period_use(account)
    limit = period_limit(account)
    by_hour = _spent_by_hour(db, account, min(starts_at, db.now - WINDOW))
    if period is None and spent == by_hour.total():  # nothing was spent before
        starts_at = max(starts_at, min(by_hour) * HOUR) if by_hour else db.now
    found = None
    if limit is not None:
        recent = {hour: amount for hour, amount in by_hour.items() if hour >= (db.now - WINDOW) // HOUR}
        hours = [recent.get(hour, 0) for hour in range(min(recent), db.now // HOUR + 1)] if recent else []
        found = forecast(hours, spent, held, limit, db.now, ends_at)
    return BudgetForecast(starts_at, ends_at, _points(by_hour, spent, starts_at, db.now), found)


def due_forecasts(db: Read) -> Sequence[UUID]:
    """Budgets in a period: the forecast of each may be alarming."""
    running = select(BudgetPeriodRow.account).where(BudgetPeriodRow.closed.is_(False))
    return db.sql.scalars(running.order_by(BudgetPeriodRow.account)).all()


def tell_forecast(db: Write, account_id: UUID) -> bool:
    """Tell the teams if a budget's limit won't last its period; once for each limit. Returns whether it did."""
    account = load_account(db, account_id)
    if account.forecast_told:
        return False
    period, limit = load_periods(db, [account_id]).get(account_id), period_limit(account)
    found = load_forecast(db, account).forecast
    if period is None or limit is None or found is None or not found.crosses(limit):
        return False
    untold = (AccountRow.id == account_id, AccountRow.version == account.version, AccountRow.forecast_told.is_(False))
    if db.execute(update(AccountRow).where(*untold).values(forecast_told=True)) != 1:
        return False
    ends = periods.border_text(period.ends_at, period.time_zone)
    assert found.exhausted_at is not None, "it crosses the limit"
    exhausted = periods.border_text(found.exhausted_at, period.time_zone)
    expected, of_limit = money.to_decimal(found.expected), money.to_decimal(limit)
    reason = budget.LimitWontLast(title(db, account), expected, of_limit, ends, exhausted)
    for team in teams_below(db, account):
        db.event(
            ForecastAlert(account=account_id, expected=expected, limit=of_limit), team=team, actor="ledger",
            reason=reason,
        )  # fmt: skip
    return True


def _spent_by_hour(db: Read, account: AccountRow, since: int) -> Counter[int]:
    """What was posted to the jobs below an account, less what was given back, by hours since 1970."""
    job, member, team = aliased(AccountRow), aliased(AccountRow), aliased(AccountRow)
    spent = case((TransferRow.debit_account == job.id, TransferRow.amount), else_=-TransferRow.amount)
    hour = TransferRow.at // HOUR
    below = (
        select(hour, func.sum(spent))
        .join(job, or_(job.id == TransferRow.debit_account, job.id == TransferRow.credit_account))
        .join(member, member.id == job.parent)
        .join(team, team.id == member.parent)
        .where(TransferRow.at >= since, job.kind == "job")
        .where(or_(member.id == account.id, team.id == account.id, team.parent == account.id))
        .group_by(hour)
    )
    return Counter({int(number): int(amount) for number, amount in db.sql.execute(below)})


def _points(by_hour: Counter[int], spent: int, starts_at: int, now: int) -> list[tuple[int, int]]:
    """What was spent after each hour with a posting, counted back from what is spent now."""
    hours = [hour for hour in sorted(by_hour, reverse=True) if (hour + 1) * HOUR > starts_at]
    points, left = [(now, max(0, spent))], spent
    for hour in hours:
        left -= by_hour[hour]
        points.append((max(starts_at, hour * HOUR), max(0, left)))
    if points[-1][0] > starts_at:
        points.append((starts_at, max(0, left)))
    return points[::-1]

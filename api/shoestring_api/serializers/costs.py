# SPDX-License-Identifier: Apache-2.0
"""Costs of jobs and machines, and budgets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from shoestring_core import money, rest
from shoestring_core.decide import periods, soft_lines
from shoestring_core.decide.billing import Line, bill
from shoestring_core.decide.timeouts import S
from shoestring_core.store import ledger
from shoestring_core.store.fleet.billing import evidence
from shoestring_core.store.fleet.running_jobs import InUse, load_in_use
from shoestring_core.store.queries import JobRows
from shoestring_core.store.tables import AccountRow, BudgetPeriodRow, MachineRow
from shoestring_core.store.transactions import Read

from shoestring_api.serializers.times import to_datetime
from shoestring_api.settings import Hosting

FAR_AWAY = 4_102_444_800_000_000
"""The year 2100, µs UTC: what lasts until then is not said to end."""


def serialize_cost(rows: JobRows, now: int) -> rest.Cost:
    account = rows.account
    bills = [(row, machine_bill(row, now)) for row in rows.machines]
    running = sum(max(0, total(lines) - rows.posted.get(row.id, 0)) for row, lines in bills if not row.billed_at)
    return rest.Cost(
        spent=rest.Money.of(account.posted if account else 0),
        running=rest.Money.of(running),
        held=rest.Money.of(account.held if account else 0),
        estimated=rest.Money.of(sum(line.amount for _, lines in bills for line in lines if line.estimate)),
        on_demand=rest.Money.of(sum(total(on_demand_bill(row, now)) for row in rows.machines)),
        limit=rest.Money.of(account.limit_micro) if account and account.limit_micro is not None else None,
        settled=rows.job.settled_at is not None,
        price_basis="simulated" if all(row.simulated for row in rows.machines) else "snapshot",
    )


def machine_bill(row: MachineRow, now: int) -> list[Line]:
    """The bill of a machine by `now`."""
    return bill(evidence(row), now)


def on_demand_bill(row: MachineRow, now: int) -> list[Line]:
    """What the bill of a machine would be by `now` on demand."""
    return bill(replace(evidence(row), price=row.on_demand_price, market="on_demand"), now)


def total(lines: Iterable[Line]) -> int:
    """In micro-dollars."""
    return sum(line.amount for line in lines)


def serialize_budgets(db: Read, accounts: Sequence[AccountRow]) -> list[rest.Budget]:
    titles, half_life = ledger.titles(db, accounts), ledger.load_half_life(db)
    current = ledger.load_periods(db, [row.id for row in accounts])
    in_use = load_in_use(db) if any(_is_capped(row) for row in accounts) else {}
    return [
        _budget(
            row, titles[row.id], ledger.recent_spending(db, row, half_life), current.get(row.id),
            _concurrency(row, in_use.get(row.owner, InUse())) if _is_capped(row) else None,
        )
        for row in accounts
    ]  # fmt: skip


def serialize_forecast(account: AccountRow, found: ledger.BudgetForecast) -> rest.BudgetForecast:
    forecast, limit, (spent, held) = found.forecast, ledger.period_limit(account), ledger.period_use(account)
    band = None
    if forecast is not None:
        low, expected, high = (rest.Money.of(one) for one in (forecast.low, forecast.expected, forecast.high))
        band = rest.SpendingBand(low=low, expected=expected, high=high)
    return rest.BudgetForecast(
        starts_at=to_datetime(found.starts_at),
        ends_at=to_datetime(found.ends_at),
        limit=None if limit is None else rest.Money.of(limit),
        spent=rest.Money.of(max(0, spent)),
        committed=rest.Money.of(held),
        points=[rest.SpentBy(at=to_datetime(at), spent=rest.Money.of(by_then)) for at, by_then in found.points],
        at_end=band,
        pace=None if forecast is None else rest.Money.of(forecast.pace),
        even_pace=None if forecast is None else rest.Money.of(max(0, forecast.even_pace)),
        exhausted_at=None if forecast is None else to_datetime(_storable(forecast.exhausted_at)),
        crosses_limit=forecast is not None and limit is not None and forecast.crosses(limit),
    )


def _storable(at: int | None) -> int | None:
    """A time that a calendar has; None for one beyond."""
    return None if at is None or at > FAR_AWAY else at


def serialize_hosting(hosting: Hosting, now: int) -> rest.Hosting:
    since = hosting.since * S
    return rest.Hosting(
        name=hosting.name,
        hourly=rest.Money.of(money.from_decimal(hosting.hourly_usd)),
        since=to_datetime(since),
        spent=rest.Money.of(money.cost(hosting.hourly_usd, max(0, now - since))),
    )


def _is_capped(row: AccountRow) -> bool:
    return row.max_jobs is not None or row.max_gpus is not None


def _concurrency(row: AccountRow, in_use: InUse) -> rest.Concurrency:
    return rest.Concurrency(jobs=in_use.jobs, max_jobs=row.max_jobs, gpus=in_use.gpus, max_gpus=row.max_gpus)


def _budget(
    row: AccountRow, title: str, recent: int, period: BudgetPeriodRow | None, concurrency: rest.Concurrency | None
) -> rest.Budget:  # fmt: skip
    """`title`: the display name of the account, such as `team vision`."""
    left = None if row.limit_micro is None else max(0, row.limit_micro + row.overdraft - row.posted - row.held)
    shares = row.kind in ledger.SHARING
    limit, (spent, held) = ledger.period_limit(row), ledger.period_use(row)
    return rest.Budget(
        id=row.id,
        kind=row.kind,
        owner=title.removeprefix(f"{row.kind} ").removeprefix("organization "),
        limit=None if limit is None else rest.Money.of(limit),
        posted=rest.Money.of(max(0, spent)),
        held=rest.Money.of(held),
        overdraft=rest.Money.of(row.overdraft),
        left=None if left is None else rest.Money.of(left),
        weight=row.weight if shares else None,
        guaranteed_rate=rest.Money.of(row.guaranteed_rate) if row.kind == "team" else None,
        concurrency=concurrency,
        recent=rest.Money.of(recent) if shares else None,
        soft_lines=_soft_lines(row),
        period=None if period is None else _period(period),
        etag=f'"{row.version}"',
    )


def _period(row: BudgetPeriodRow) -> rest.BudgetPeriod:
    starts_at, ends_at, begins = row.starts_at, row.ends_at, None
    if row.then_ends_at is not None:
        starts_at, ends_at = row.ends_at, row.then_ends_at
        begins = periods.border_text(starts_at, row.time_zone)
    return rest.BudgetPeriod.model_validate(
        {
            "kind": row.kind,
            "amount": rest.Money.of(row.amount),
            "time_zone": row.time_zone,
            "starts_at": to_datetime(starts_at),
            "ends_at": to_datetime(ends_at),
            "ends": periods.border_text(ends_at, row.time_zone),
            "begins": begins,
            "ended": row.closed,
            "rollover": row.rollover,
            "rollover_cap": None if row.rollover_cap is None else rest.Money.of(row.rollover_cap),
            "carried_over": rest.Money.of(row.carried_over),
        }
    )


def _soft_lines(row: AccountRow) -> list[rest.SoftLine]:
    limit = ledger.period_limit(row)
    return [
        rest.SoftLine(
            percent=line,
            at=None if limit is None else rest.Money.of(soft_lines.amount_at(line, limit)),
            reached=line <= row.soft_line_reached,
        )
        for line in ledger.lines_of(row)
    ]

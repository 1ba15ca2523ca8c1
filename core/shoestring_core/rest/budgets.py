# SPDX-License-Identifier: Apache-2.0
"""Budgets: limits, periods, warnings, caps, forecasts, and who spent them."""

from __future__ import annotations

from datetime import date, datetime
from typing import Literal
from uuid import UUID

from pydantic import Field

from shoestring_core.decide.queue import MAX_CAP, MAX_WEIGHT, MIN_WEIGHT
from shoestring_core.decide.soft_lines import MAX_LINES
from shoestring_core.rest.base import Dollars, Money, RequestBody, Resource, Sentence


class SoftLine(Resource):
    """A share of a limit at which its spenders are warned."""

    percent: int
    at: Money | None
    """Dollars of it; None without a limit."""
    reached: bool
    """It was reached since the limit last moved, by what is spent and held."""


class BudgetPeriod(Resource):
    """The month or term that a budget is in. At its end what is unspent carries over, or expires."""

    kind: Literal["month", "term"]
    amount: Money
    """What each month begins with."""
    time_zone: str
    starts_at: datetime
    ends_at: datetime
    ends: str
    """The end as people of its time zone write it."""
    begins: str | None = None
    """The beginning, so written, of one that has not begun: until then the budget is as it is. None: it has."""
    ended: bool
    """A term that is over."""
    rollover: Literal["none", "unspent"]
    rollover_cap: Money | None = None
    """The most that carries over; None: all that is unspent."""
    carried_over: Money
    """What the last period left to this one; part of the limit."""


class Concurrency(Resource):
    """What runs of a team or member, and how much may at once; None: no cap."""

    jobs: int
    max_jobs: int | None
    gpus: int
    max_gpus: int | None


class Budget(Resource):
    id: UUID
    kind: str
    owner: str
    limit: Money | None
    """Of its period, as are `posted` and `held`: what was held at the border counts for the one before."""
    posted: Money
    held: Money
    overdraft: Money
    left: Money | None
    """limit + overdraft − posted − held; None without a limit."""
    weight: int | None = None
    """How its share of the dollars compares with that of other teams or members; None: it shares with none."""
    guaranteed_rate: Money | None = None
    """Of a team: dollars an hour that its machines may cost before it borrows from other teams."""
    concurrency: Concurrency | None = None
    """None: it has no concurrency cap."""
    recent: Money | None = None
    """What it spent, each dollar counted half after each half-life; with what is held it orders the queue."""
    soft_lines: list[SoftLine] = []
    """Rising; those of a job's budget: none."""
    period: BudgetPeriod | None = None
    """None: it is one-off, its limit has no end."""
    etag: str


class SpentBy(Resource):
    at: datetime
    spent: Money


class SpendingBand(Resource):
    """One period of ten ends below `low` and one above `high`, if spending continues as before."""

    low: Money
    expected: Money
    high: Money


class BudgetForecast(Resource):
    """What a budget spent in its period, and will have spent when it ends. One-off: in 28 days, and in 30 more."""

    starts_at: datetime
    ends_at: datetime
    limit: Money | None
    spent: Money
    committed: Money
    """What is held now."""
    points: list[SpentBy]
    """What was spent by then, rising in time; the last one is now."""
    at_end: SpendingBand | None
    """If nothing stopped it at the limit. None: there is no limit, or too little was spent to say."""
    pace: Money | None
    """A day, over the last 28 days, or since anything was spent."""
    even_pace: Money | None
    """A day, which would use the limit exactly by the end."""
    exhausted_at: datetime | None
    """When the limit is spent at this pace; None: never, or nobody can say."""
    crosses_limit: bool


class Hosting(Resource):
    """The machine that the service runs on: an estimate, which no budget pays for."""

    name: str
    hourly: Money
    since: datetime
    """When it started."""
    spent: Money
    """Since then."""


class BudgetList(Resource):
    budgets: list[Budget]
    hosting: Hosting | None = None
    """None: the service runs where nobody is billed for it by the hour."""
    leaked: Money = Money(amount="0.00")
    """What machines, disks and addresses have cost that ran at a provider without a job: no budget paid for them."""


class SetBudgetRequest(RequestBody):
    limit: Dollars
    """Decimal dollars."""
    reason: Sentence = ""


class GrantRequest(RequestBody):
    amount: Dollars
    """Decimal dollars to add to the limit."""
    reason: Sentence = ""


class TransferRequest(RequestBody):
    to: UUID = Field(strict=False)
    """The budget that gets them; below the same budget as the one that gives."""
    amount: Dollars
    """Decimal dollars."""
    reason: Sentence = ""


class SetWeightRequest(RequestBody):
    weight: int = Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)
    reason: Sentence = ""


class SetGuaranteedRateRequest(RequestBody):
    rate: Dollars
    """Decimal dollars an hour; 0: all that the team uses is borrowed."""
    reason: Sentence = ""


class SetConcurrencyRequest(RequestBody):
    """Null: there is no cap. 0: none start."""

    max_jobs: int | None = Field(ge=0, le=MAX_CAP)
    max_gpus: int | None = Field(ge=0, le=MAX_CAP)
    reason: Sentence = ""


class SetPeriodRequest(RequestBody):
    kind: Literal["one_off", "month", "term"]
    time_zone: str = Field(default="UTC", max_length=60)
    """In which a day, and so a month, begins."""
    until: date | None = Field(default=None, strict=False)
    """Of a term: its last day."""
    starts: date | None = Field(default=None, strict=False)
    """The first day, in the future; None: it begins now."""
    rollover: Literal["none", "unspent"] = "none"
    rollover_cap: Dollars | None = None
    """Decimal dollars that carry over at most; None: all that is unspent."""
    reason: Sentence = ""


class SetSoftLinesRequest(RequestBody):
    percents: list[int] = Field(max_length=MAX_LINES)
    """Whole numbers from 1 to 100; none: no warnings."""
    reason: Sentence = ""

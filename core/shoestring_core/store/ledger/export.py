# SPDX-License-Identifier: Apache-2.0
"""Every line of the ledger that concerns a team, in pages: changes of limits, then what its machines cost.

Each page is a transaction of its own, so that an export of any length holds neither memory nor a snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import and_, or_, select

from shoestring_core import money
from shoestring_core.store.ledger.accounts import ancestors, team_account, titles
from shoestring_core.store.tables import AccountRow, JobRow, LimitChangeRow, MachineRow, TransferRow
from shoestring_core.store.transactions import Read
from shoestring_core.wording import render

PAGE = 500


@dataclass(frozen=True)
class LedgerLine:
    """A change of a limit, or what was posted of a machine's cost. Amounts are decimal dollars; `at` is µs UTC.

    amount  what the limit rose by, or what was spent; negative: what it fell by, or was given back; "": to or from none
    """

    at: int
    kind: str
    account: str
    amount: str
    limit_before: str
    limit_after: str
    job: str
    machine: str
    line: str
    actor: str
    reason: str


def limit_lines(db: Read, team: UUID, after: LimitChangeRow | None) -> tuple[list[LedgerLine], LimitChangeRow | None]:
    """The page after a row, and its last row; None when there are no more."""
    own = team_account(db, team)
    members = select(AccountRow.id).where(AccountRow.parent == own.id)
    seen = LimitChangeRow.account.in_([row.id for row in ancestors(db, own.id)])
    below = or_(AccountRow.parent == own.id, AccountRow.parent.in_(members))
    query = select(LimitChangeRow).where(or_(seen, LimitChangeRow.account.in_(select(AccountRow.id).where(below))))
    if after is not None:
        later = and_(LimitChangeRow.account == after.account, LimitChangeRow.version > after.version)
        query = query.where(or_(LimitChangeRow.account > after.account, later))
    rows = db.sql.scalars(query.order_by(LimitChangeRow.account, LimitChangeRow.version).limit(PAGE)).all()
    accounts = db.sql.scalars(select(AccountRow).where(AccountRow.id.in_({row.account for row in rows}))).all()
    named, jobs = titles(db, accounts), {row.id: row.owner for row in accounts if row.kind == "job"}
    lines = [_limit_line(row, named[row.account], jobs.get(row.account, "")) for row in rows]
    return lines, rows[-1] if len(rows) == PAGE else None


def cost_lines(db: Read, team: UUID, after: UUID | None) -> tuple[list[LedgerLine], UUID | None]:
    """The page after a transfer, and its last one; None when there are no more."""
    query = (
        select(TransferRow, JobRow.id, JobRow.name, AccountRow.kind)
        .join(MachineRow, MachineRow.id == TransferRow.machine)
        .join(JobRow, JobRow.id == MachineRow.job)
        .join(AccountRow, AccountRow.id == TransferRow.debit_account)
        .where(JobRow.team_id == team)
    )
    if after is not None:
        query = query.where(TransferRow.id > after)
    rows = db.sql.execute(query.order_by(TransferRow.id).limit(PAGE)).all()
    lines = [_cost_line(row, job, name, sign=1 if kind == "job" else -1) for row, job, name, kind in rows]
    return lines, rows[-1][0].id if len(rows) == PAGE else None


def _limit_line(row: LimitChangeRow, account: str, job: str) -> LedgerLine:
    before, after = row.limit_before, row.limit_after
    return LedgerLine(
        at=row.at,
        kind=f"limit {row.kind}",
        account=account,
        amount="" if before is None or after is None else money.to_decimal(after - before),
        limit_before="none" if before is None else money.to_decimal(before),
        limit_after="none" if after is None else money.to_decimal(after),
        job=job,
        machine="",
        line="",
        actor=row.actor,
        reason=_text(row.reason),
    )


def _cost_line(row: TransferRow, job: UUID, name: str, *, sign: int) -> LedgerLine:
    return LedgerLine(
        at=row.at,
        kind=row.kind,
        account=f"job {name}",
        amount=money.to_decimal(sign * row.amount),
        limit_before="",
        limit_after="",
        job=str(job),
        machine=str(row.machine or ""),
        line=row.line or "",
        actor=row.actor,
        reason=_text(row.reason),
    )


def _text(reason: dict[str, Any]) -> str:
    return render(**reason)

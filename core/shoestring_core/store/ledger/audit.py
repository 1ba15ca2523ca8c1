# SPDX-License-Identifier: Apache-2.0
"""The audit: every total of the ledger compared with the sums it stands for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select

from shoestring_core.store.tables import (
    AccountRow,
    CarriedHoldRow,
    CommitmentRow,
    HoldRow,
    LimitChangeRow,
    TransferRow,
)
from shoestring_core.store.transactions import Read


@dataclass(frozen=True)
class Discrepancy:
    """A total that differs from the sum of its parts. `account` None: the sum over all accounts, which must be 0."""

    account: UUID | None
    total: str
    expected: int | None
    actual: int | None
    """None: no limit."""


def find_discrepancies(db: Read) -> list[Discrepancy]:
    """Compare every total with its sum; a healthy ledger has no discrepancy."""
    accounts = db.sql.execute(_ACCOUNTS).all()
    posted, held = _posted_by_account(db), _held_by_account(db)
    for account in accounts:  # leaves come first, so that an account is complete before it counts for its parent
        if account.parent is not None:
            posted[account.parent] += posted[account.id]
            held[account.parent] += held[account.id]
    limits, carried = _limits_by_account(db), _carried_by_account(db)
    totals = ("posted", "held", "overdraft", "carried", "base", "limit")
    found = []
    for account in accounts:
        base, limit = account.period_base, account.limit_micro
        actual = (account.posted, account.held, account.overdraft, account.carried, base, limit)
        if account.id in limits:
            limit, base = limits[account.id]
            limit = None if limit is None else limit + base
        overdraft = _overdraft(account.posted + account.held, account.limit_micro)
        expected = (posted[account.id], held[account.id], overdraft, carried[account.id], base, limit)
        if expected != actual:
            differing = zip(totals, expected, actual, strict=True)
            found += [Discrepancy(account.id, total, *pair) for total, *pair in differing if pair[0] != pair[1]]
    leaves = sum(account.posted for account in accounts if account.kind in ("job", "cash", "overrun"))
    return found if leaves == 0 else [*found, Discrepancy(None, "sum of all", 0, leaves)]


_ACCOUNTS = select(
    AccountRow.id, AccountRow.parent, AccountRow.kind, AccountRow.posted, AccountRow.held, AccountRow.overdraft,
    AccountRow.limit_micro, AccountRow.carried, AccountRow.period_base,
).order_by(AccountRow.level.desc(), AccountRow.id)  # fmt: skip


def _posted_by_account(db: Read) -> Counter[UUID]:
    """Debits less credits of each account."""
    sums = Counter[UUID]()
    for side, sign in ((TransferRow.debit_account, 1), (TransferRow.credit_account, -1)):
        for account, amount in db.sql.execute(select(side, func.sum(TransferRow.amount)).group_by(side)):
            sums[account] += sign * int(amount)
    return sums


def _held_by_account(db: Read) -> Counter[UUID]:
    """The rest of each account's open holds, and what is committed to it."""
    rest = func.sum(HoldRow.amount - HoldRow.consumed)
    rows = db.sql.execute(select(HoldRow.account, rest).where(HoldRow.state == "open").group_by(HoldRow.account))
    held = Counter({account: int(amount) for account, amount in rows})
    for account, amount in db.sql.execute(select(CommitmentRow.account, CommitmentRow.amount)):
        held[account] += amount
    return held


def _carried_by_account(db: Read) -> Counter[UUID]:
    """What each account still holds of what it held at its last border."""
    rest = func.sum(CarriedHoldRow.rest)
    rows = db.sql.execute(select(CarriedHoldRow.account, rest).group_by(CarriedHoldRow.account))
    return Counter({account: int(amount) for account, amount in rows})


def _limits_by_account(db: Read) -> dict[UUID, tuple[int | None, int]]:
    """Each account's limit and its base by the newest of its changes, of those that have one."""
    newest = select(LimitChangeRow.account, func.max(LimitChangeRow.version).label("version"))
    last = newest.group_by(LimitChangeRow.account).subquery()
    rows = select(LimitChangeRow.account, LimitChangeRow.limit_after, LimitChangeRow.base).join(
        last, (LimitChangeRow.account == last.c.account) & (LimitChangeRow.version == last.c.version)
    )
    return {account: (limit, base) for account, limit, base in db.sql.execute(rows)}


def _overdraft(used: int, limit: int | None) -> int:
    return 0 if limit is None else max(0, used - limit)

# SPDX-License-Identifier: Apache-2.0
"""Settlement: the cost of machines, posted against their holds in increments of each bill line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import bindparam, case, func, or_, select

from shoestring_core import money
from shoestring_core.decide.billing import Line
from shoestring_core.errors import StaleTransition
from shoestring_core.store.ledger.accounts import account_of, ancestors
from shoestring_core.store.ledger.balances import BalanceChange, apply_changes
from shoestring_core.store.ledger.commitments import give_back
from shoestring_core.store.ledger.feed import record_alarm, record_movement
from shoestring_core.store.ledger.holds import change_hold, newest_hold
from shoestring_core.store.ledger.periods import settle_carried
from shoestring_core.store.ledger.shares import record_spending
from shoestring_core.store.tables import HoldRow, TransferRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording import bills


def settle(db: Write, machine: UUID, lines: Sequence[Line], *, final: bool) -> int:
    """Post what a machine has cost so far, as far as its hold covers it; returns the uncovered amount.

    Each line's new increment is its amount less what was posted of it: the same lines again post nothing, and a line
    that the bill no longer has is given back: an estimate, of a machine that turned out never to have run, for one.

    With `final` the rest of the hold is released, and the uncovered amount is posted as overrun, which may make an
    overdraft: so a final settlement is a transaction of its own, that changes nothing but the machine it bills.

    Raises StaleTransition if another transaction settled the machine at the same time.
    """
    hold = newest_hold(db, machine)
    if hold is None:
        if any(line.amount for line in lines):
            raise StaleTransition(bills.BillWithoutHold(str(machine)))
        return 0
    posted = _posted_by_line(db, hold)
    dropped = [Line(line, 0, bills.NotBilled()) for line in sorted(posted.keys() - {line.line for line in lines})]
    increments = [_Increment(line, line.amount - posted.get(line.line, 0)) for line in [*lines, *dropped]]
    available = hold.amount - hold.consumed if hold.state == "open" else 0
    uncovered = max(0, _sum(increments) - available)
    covered = _cover(increments, available) if uncovered else increments
    overrun = _subtract(increments, covered) if uncovered and final else []
    if any(increment.amount for increment in [*covered, *overrun]) or (final and hold.state == "open"):
        _post(db, hold, covered, overrun, final=final)
    return uncovered


def transfers_of(db: Read, account: UUID) -> list[TransferRow]:
    """The transfers of a job's account, oldest first."""
    either_side = or_(TransferRow.debit_account == account, TransferRow.credit_account == account)
    return list(db.sql.scalars(select(TransferRow).where(either_side).order_by(TransferRow.at, TransferRow.id)))


@dataclass(frozen=True)
class _Increment:
    """What is still to be posted of a bill line; negative after a correction."""

    line: Line
    amount: int


def _sum(increments: Iterable[_Increment]) -> int:
    return sum(increment.amount for increment in increments)


def _cover(increments: list[_Increment], available: int) -> list[_Increment]:
    """As much of the increments as is available, line by line; corrections first, because they free money."""
    covered = []
    for increment in sorted(increments, key=lambda one: one.amount > 0):
        covered.append(_Increment(increment.line, min(increment.amount, available)))
        available -= covered[-1].amount
    return covered


def _subtract(increments: list[_Increment], covered: list[_Increment]) -> list[_Increment]:
    amounts = {increment.line.line: increment.amount for increment in covered}
    return [_Increment(one.line, one.amount - amounts[one.line.line]) for one in increments]


def _post(db: Write, hold: HoldRow, covered: list[_Increment], overrun: list[_Increment], *, final: bool) -> None:
    """Post within the hold and, at the end, beyond it: overrun is owed too, and raises an alarm."""
    spent, beyond, is_open = _sum(covered), _sum(overrun), hold.state == "open"
    consumed = max(0, hold.consumed + spent) if is_open else hold.consumed
    unheld = (hold.amount if final else consumed) - hold.consumed if is_open else 0
    if is_open:
        change_hold(db, hold, consumed=consumed, state="closed" if final else "open")
        if final and (rest := hold.amount - consumed):
            unheld -= rest - give_back(db, hold.account, rest)
    changes = _insert_transfers(db, hold, covered, "usage" if is_open else "correction", counterparty="cash")
    changes |= _insert_transfers(db, hold, overrun, "overrun", counterparty="overrun")
    changes[hold.account] = BalanceChange(spent + beyond, -unheld)
    accounts = apply_changes(db, changes, may_overdraw=beyond > 0)
    settle_carried(db, hold, accounts, consumed - hold.consumed, closed=final)
    record_spending(db, accounts, spent + beyond)
    team = record_movement(db, hold.machine, "settled" if final else "posted", spent + beyond)
    if beyond:
        reason = bills.Overrun(str(hold.machine), money.to_decimal(beyond))
        overdrawn = [account for account in accounts if account.overdraft > 0]
        record_alarm(db, team, "overrun", overdrawn, actor="ledger", reason=reason)
    if final:  # only now is money available again to waiting jobs
        db.request_tick()


def _insert_transfers(
    db: Write, hold: HoldRow, increments: list[_Increment], kind: str, *, counterparty: str
) -> dict[UUID, BalanceChange]:
    """Write transfers, none for zero, a negative one in the other direction; returns the counterparty's change."""
    other = account_of(db, counterparty, ancestors(db, hold.account)[-1].owner)
    for increment in increments:
        if not increment.amount:
            continue
        debit, credit = (hold.account, other.id) if increment.amount > 0 else (other.id, hold.account)
        inserted = db.insert_new(
            TransferRow,
            id=uuid7(),
            kind=kind,
            debit_account=debit,
            credit_account=credit,
            amount=abs(increment.amount),
            hold=hold.id,
            machine=hold.machine,
            line=increment.line.line,
            increment=_next_increment(db, hold.machine, increment.line.line),
            at=db.now,
            actor="ledger",
            reason=increment.line.reason.as_json(),
        )
        if not inserted:
            raise StaleTransition(bills.HoldConflict(str(hold.machine)))
    return {other.id: BalanceChange(posted=-_sum(increments))}


def _next_increment(db: Read, machine: UUID, line: str) -> int:
    ((last,),) = db.rows(_LAST_INCREMENT, machine=machine, line=line)
    return (last or 0) + 1


def _posted_by_line(db: Read, hold: HoldRow) -> dict[str, int]:
    """What was posted of each bill line for the hold's machine."""
    posted = db.rows(_POSTED_BY_LINE, account=hold.account, machine=hold.machine)
    return {str(line): int(total) for line, total in posted}


_LAST_INCREMENT = select(func.max(TransferRow.increment)).where(
    TransferRow.machine == bindparam("machine"), TransferRow.line == bindparam("line")
)
_POSTED_BY_LINE = (
    select(
        TransferRow.line,
        func.sum(
            case((TransferRow.debit_account == bindparam("account"), TransferRow.amount), else_=-TransferRow.amount)
        ),
    )
    .where(TransferRow.machine == bindparam("machine"))
    .group_by(TransferRow.line)
)

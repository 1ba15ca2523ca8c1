# SPDX-License-Identifier: Apache-2.0
"""Holds: money set aside for a machine until its funding ends and it has been terminated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import bindparam, func, select, update

from shoestring_core.errors import StaleTransition
from shoestring_core.store.ledger.balances import BalanceChange, apply_changes, hold_amounts
from shoestring_core.store.ledger.commitments import draw, give_back
from shoestring_core.store.ledger.feed import record_movement
from shoestring_core.store.ledger.periods import settle_carried
from shoestring_core.store.tables import HoldRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording import Reason, bills


@dataclass(frozen=True)
class HoldRequest:
    """A hold to place: `amount` for `machine`, from its job's `account`, covering it until `funded_until` and its end.

    rate_cap  decimal dollars per hour that can't be exceeded
    """

    machine: UUID
    account: UUID
    rate_cap: str
    amount: int
    funded_until: int | None = None


def place_hold(
    db: Write, *, machine: UUID, account: UUID, rate_cap: str, amount: int, funded_until: int | None
) -> HoldRow:
    """Set money aside for one machine. Raises as `place_holds` does."""
    return place_holds(db, [HoldRequest(machine, account, rate_cap, amount, funded_until)])[0]


def place_holds(db: Write, requests: Sequence[HoldRequest]) -> list[HoldRow]:
    """Set money aside for several machines, all or none; first what is committed to their jobs.

    Raises BudgetExceeded, naming the account that is short, and leaves the transaction as it was; StaleTransition if a
    machine already has an open hold.
    """
    with db.savepoint():
        holds = {request.machine: _insert(db, request) for request in sorted(requests, key=lambda one: one.machine)}
        by_account = Counter[UUID]()
        for request in requests:
            by_account[request.account] += request.amount
        hold_amounts(db, draw(db, by_account))
    for hold in holds.values():
        record_movement(db, hold.machine, "held", hold.amount)
    return [holds[request.machine] for request in requests]


def extend_hold(
    db: Write,
    machine: UUID,
    amount_more: int,
    funded_until: int,
    *,
    if_funded_until: int | None = None,
    reserved: bool = False,
) -> HoldRow:
    """Add to a machine's open hold. `if_funded_until`: the end that the decision was made on; else it only moves later.

    reserved  what the hold has left was reserved for this: with no more to add, no account is asked
    Raises BudgetExceeded, naming the account that is short, and leaves the transaction as it was; StaleTransition if
    the hold was closed or another transaction extended it.
    """
    as_decided = HoldRow.funded_until == if_funded_until
    later = func.coalesce(HoldRow.funded_until, 0) < funded_until
    extended = (
        update(HoldRow)
        .where(HoldRow.machine == machine, HoldRow.state == "open", later if if_funded_until is None else as_decided)
        .values(amount=HoldRow.amount + amount_more, funded_until=funded_until)
    )
    with db.savepoint():
        if not db.execute(extended):
            raise StaleTransition(bills.HoldConflict(str(machine)))
        hold = newest_hold(db, machine)
        assert hold is not None
        if amount_more or not reserved:
            hold_amounts(db, draw(db, {hold.account: amount_more}))
    record_movement(db, machine, "extended", amount_more)
    return hold


def release_hold(db: Write, machine: UUID, reason: Reason) -> int:
    """Give back the rest of a machine's hold, to its job's commitment if there is one, and return its amount; 0 if no
    hold is open."""
    hold = newest_hold(db, machine)
    if hold is None or hold.state == "closed":
        return 0
    rest = hold.amount - hold.consumed
    change_hold(db, hold, consumed=hold.consumed, state="closed")
    accounts = apply_changes(db, {hold.account: BalanceChange(held=-give_back(db, hold.account, rest))})
    settle_carried(db, hold, accounts, 0, closed=True)
    record_movement(db, machine, "released", rest, reason)
    db.request_tick()
    return rest


def newest_hold(db: Read, machine: UUID) -> HoldRow | None:
    found = db.values(HoldRow, _NEWEST, machine=machine)
    return found[0] if found else None


def change_hold(db: Write, hold: HoldRow, *, consumed: int, state: str) -> None:
    """Guarded by the whole hold as it was read. Raises StaleTransition."""
    unchanged = (
        HoldRow.id == hold.id,
        HoldRow.state == "open",
        HoldRow.amount == hold.amount,
        HoldRow.consumed == hold.consumed,
    )
    if db.execute(update(HoldRow).where(*unchanged).values(consumed=consumed, state=state)) != 1:
        raise StaleTransition(bills.HoldConflict(str(hold.machine)))


_NEWEST = select(HoldRow).where(HoldRow.machine == bindparam("machine")).order_by(HoldRow.number.desc()).limit(1)


def _insert(db: Write, request: HoldRequest) -> HoldRow:
    last_number = db.sql.scalar(select(func.max(HoldRow.number)).where(HoldRow.machine == request.machine)) or 0
    hold_id = uuid7()
    inserted = db.insert_new(
        HoldRow,
        id=hold_id,
        machine=request.machine,
        number=last_number + 1,
        account=request.account,
        rate_cap=request.rate_cap,
        amount=request.amount,
        consumed=0,
        funded_until=request.funded_until,
        state="open",
    )
    if not inserted:
        raise StaleTransition(bills.HoldAlreadyOpen(str(request.machine)))
    return db.sql.get_one(HoldRow, hold_id)

# SPDX-License-Identifier: Apache-2.0
"""The ledger: who may spend how much, what is set aside, and what was spent. Amounts are micro-dollars.

Accounts form a tree, organisation > team > member > job. On each of them, at every commit (invariant I1, also a CHECK):

    posted + held <= limit + overdraft

A machine's money is first *held*, on its job's account and every account above, then *posted* in slices as the
provider's evidence comes in, and what is left of the hold is released. What a provider takes beyond the hold is
*overrun*: posted all the same, named by an account of its own, with an alarm. Only an overrun and a cut of the limit
make an overdraft; while there is one on an account, nothing is held there or below.

Every entry is one immutable transfer; corrections are further transfers. Accounts are written leaves first, by id
within a level, so that writers never wait for each other in a circle. So a transaction holds or settles for one
machine, or for several at once with `place_holds`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, Select, case, func, or_, select, update

from shoestring_core import money
from shoestring_core.decide.billing import Line
from shoestring_core.errors import BudgetExceeded, NotFound, PreconditionFailed, StaleTransition
from shoestring_core.store.db import Read, Write
from shoestring_core.store.ids import new_id
from shoestring_core.store.tables import AccountRow, HoldRow, JobRow, MachineRow, TeamRow, TransferRow, UserRow

LEVELS = {"org": 0, "team": 1, "member": 2, "job": 3, "cash": 9, "overrun": 9}


# Accounts


def open_tree(db: Write, org: str, team: UUID, member: UUID | None = None) -> AccountRow:
    """The account of a team, or of a member in it. Those that are missing are made, without a limit."""
    top = _open(db, "org", org, parent=None)
    for taker in ("cash", "overrun"):
        _open(db, taker, org, parent=None)
    account = _open(db, "team", str(team), parent=top.id)
    return account if member is None else _open(db, "member", f"{team}/{member}", parent=account.id)


def open_job(db: Write, job: JobRow, limit_micro: int | None) -> AccountRow:
    """The account of a new job, below that of its member."""
    return _open(db, "job", str(job.id), parent=member_account(db, job.team_id, job.user_id).id, limit=limit_micro)


def member_account(db: Write, team: UUID, user: UUID) -> AccountRow:
    """The account of a member, made if it is missing."""
    parent = _find(db, "team", str(team))
    return _open(db, "member", f"{team}/{user}", parent=parent.id)


def job_account(db: Read, job: UUID) -> AccountRow:
    return _find(db, "job", str(job))


def team_account(db: Read, team: UUID) -> AccountRow:
    return _find(db, "team", str(team))


def path(db: Read, account: UUID) -> list[AccountRow]:
    """The account and those above it, leaf first."""
    upward = select(AccountRow.id, AccountRow.parent).where(AccountRow.id == account).cte("upward", recursive=True)
    upward = upward.union_all(select(AccountRow.id, AccountRow.parent).where(AccountRow.id == upward.c.parent))
    return list(
        db.sql.scalars(select(AccountRow).join(upward, AccountRow.id == upward.c.id).order_by(AccountRow.level.desc()))
    )


def of_team(db: Read, team: UUID) -> list[AccountRow]:
    """The organisation's account, the team's and its members': the budgets that a team sees."""
    top = team_account(db, team)
    members = select(AccountRow).where(AccountRow.kind == "member", AccountRow.parent == top.id).order_by(AccountRow.id)
    return [*reversed(path(db, top.id)), *db.sql.scalars(members)]


def visible(db: Read, team: UUID, account: UUID) -> AccountRow:
    """An account that a team may see: its own, those above it and those below. Raises NotFound for any other."""
    chain, top = path(db, account), team_account(db, team)
    if not any(one.id == top.id for one in chain) and not any(one.id == account for one in path(db, top.id)):
        raise NotFound("There is no such budget.", hint="`shoestring budget show` lists the budgets you can see.")
    return chain[0]


def smallest_limit(db: Read, account: UUID) -> AccountRow | None:
    """The account on the path with the smallest limit; None if nothing on it is limited."""
    limited = [one for one in path(db, account) if one.limit_micro is not None]
    return min(limited, key=lambda one: one.limit_micro or 0, default=None)


def available(db: Read, account: UUID) -> int | None:
    """What may still be held here; None if nothing on the path is limited. 0 while there is an overdraft on it."""
    return min((room for one in path(db, account) if (room := left(one)) is not None), default=None)


def left(account: AccountRow) -> int | None:
    """What this account alone may still hold; None without a limit."""
    if account.overdraft > 0:
        return 0
    return None if account.limit_micro is None else account.limit_micro - account.posted - account.held


def overdrawn(db: Read, account: UUID) -> AccountRow | None:
    """The account on the path whose overdraft forbids to hold or extend, nearest to the leaf; None if there is none."""
    return next((one for one in path(db, account) if one.overdraft > 0), None)


def title(db: Read, account: AccountRow) -> str:
    """What a person calls the account: `team vision`, `job digits`."""
    names: dict[str, type[TeamRow | UserRow | JobRow]] = {"team": TeamRow, "member": UserRow, "job": JobRow}
    if account.kind not in names:
        return f"organisation {account.owner}" if account.kind == "org" else account.kind
    named = names[account.kind]
    name = db.sql.scalar(select(named.name).where(named.id == UUID(account.owner.rpartition("/")[2])))
    return f"{account.kind} {name}"


def set_limit(
    db: Write, account: UUID, limit: int | None, *, actor: str, reason: str, if_version: int | None = None
) -> AccountRow:
    """Change what an account may spend; None takes the limit away.

    A limit below what is already posted and held makes an overdraft, with an alarm: the machines beneath checkpoint and
    end. Raises PreconditionFailed if `if_version` isn't the account's version any more.
    """
    before = _get(db, account)
    version, limit_before, overdraft_before = before.version, before.limit_micro, before.overdraft
    guard = AccountRow.version == (version if if_version is None else if_version)
    change = update(AccountRow).where(AccountRow.id == account, guard)
    excess = 0 if limit is None else _excess(AccountRow.posted + AccountRow.held - limit)
    if db.count(change.values(limit_micro=limit, version=AccountRow.version + 1, overdraft=excess)) != 1:
        raise PreconditionFailed("The budget has changed since you read it.", hint="Read it again, then set it.")
    after = _get(db, account)
    data = {"account": str(account), "limit": _text(limit), "before": _text(limit_before)}
    for team in _teams_below(db, after):
        db.event(team=team, kind="budget", actor=actor, reason=reason, ref=str(account), data=data)
        if after.overdraft > overdraft_before:
            _alarm(db, team, "limit_cut", [after], actor=actor, reason=reason)
    db.hint()
    return after


# Holds


@dataclass(frozen=True)
class Wanted:
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
    return place_holds(db, [Wanted(machine, account, rate_cap, amount, funded_until)])[0]


def place_holds(db: Write, wanted: Sequence[Wanted]) -> list[HoldRow]:
    """Set money aside for several machines, all or none.

    Raises BudgetExceeded, naming the account that is short, and leaves the transaction as it was; StaleTransition if a
    machine already has an open hold.
    """
    with db.sql.begin_nested():
        holds = {one.machine: _insert(db, one) for one in sorted(wanted, key=lambda one: one.machine)}
        by_account = Counter[UUID]()
        for one in wanted:
            by_account[one.account] += one.amount
        _hold(db, by_account)
    for hold in holds.values():
        _tell(db, hold.machine, "held", hold.amount)
    return [holds[one.machine] for one in wanted]


def extend_hold(
    db: Write, machine: UUID, amount_more: int, funded_until: int, *, seen_until: int | None = None
) -> HoldRow:
    """Add to a machine's open hold. `seen_until`: the end that the decision was made on.

    Raises BudgetExceeded, naming the account that is short, and leaves the transaction as it was; StaleTransition if
    the hold was closed or another extended it.
    """
    guard = [HoldRow.machine == machine, HoldRow.state == "open", func.coalesce(HoldRow.funded_until, 0) < funded_until]
    if seen_until is not None:
        guard.append(HoldRow.funded_until == seen_until)
    with db.sql.begin_nested():
        if not db.count(
            update(HoldRow).where(*guard).values(amount=HoldRow.amount + amount_more, funded_until=funded_until)
        ):
            raise StaleTransition(f"The hold of machine {machine} was closed, or another extended it.")
        hold = _newest_hold(db, machine)
        assert hold is not None
        _hold(db, {hold.account: amount_more})
    _tell(db, machine, "extended", amount_more)
    return hold


def release(db: Write, machine: UUID, reason: str) -> int:
    """Give back what is left of a machine's hold, and say how much that was; again: nothing, 0."""
    hold = _newest_hold(db, machine)
    if hold is None or hold.state == "closed":
        return 0
    rest = hold.amount - hold.consumed
    _change_hold(db, hold, consumed=hold.consumed, state="closed")
    _post(db, {hold.account: _Change(held=-rest)})
    _tell(db, machine, "released", rest, reason)
    db.hint()
    return rest


# Settlement


def settle(db: Write, machine: UUID, lines: Sequence[Line], *, final: bool) -> int:
    """Post what a machine has cost so far, as far as its hold covers it; returns what lies beyond.

    Each line's new slice is its amount less what its earlier slices posted: the same lines again post nothing. With
    `final` the rest of the hold is released, and what lies beyond is posted as overrun, which may make an overdraft: so
    a final settlement is a transaction of its own, that changes nothing but the machine it bills.

    Raises StaleTransition if another settled the machine at the same time.
    """
    hold = _newest_hold(db, machine)
    if hold is None:
        if any(line.amount for line in lines):
            raise StaleTransition(f"Machine {machine} has a bill, but no money was ever held for it.")
        return 0
    due = [_Due(line, line.amount - _posted(db, hold, line.line)) for line in lines]
    room = hold.amount - hold.consumed if hold.state == "open" else 0
    beyond = max(0, _sum(due) - room)
    covered = _fitting(due, room) if beyond else due
    overrun = _rest(due, covered) if beyond and final else []
    if any(one.amount for one in [*covered, *overrun]) or (final and hold.state == "open"):
        _settle(db, hold, covered, overrun, final=final)
    return beyond


@dataclass(frozen=True)
class _Due:
    """What is still to be posted of a line; negative after a correction."""

    line: Line
    amount: int


def _sum(due: Iterable[_Due]) -> int:
    return sum(one.amount for one in due)


def _fitting(due: list[_Due], room: int) -> list[_Due]:
    """As much of what is due as fits, line by line; corrections first, for they make room."""
    fitting = []
    for one in sorted(due, key=lambda one: one.amount > 0):
        fitting.append(_Due(one.line, min(one.amount, room)))
        room -= fitting[-1].amount
    return fitting


def _rest(due: list[_Due], covered: list[_Due]) -> list[_Due]:
    amounts = {one.line.line: one.amount for one in covered}
    return [_Due(one.line, one.amount - amounts[one.line.line]) for one in due]


def _settle(db: Write, hold: HoldRow, covered: list[_Due], overrun: list[_Due], *, final: bool) -> None:
    """Post within the hold and, at the end, beyond it: that is owed all the same, shows on the accounts, and alarms."""
    spent, beyond, is_open = _sum(covered), _sum(overrun), hold.state == "open"
    consumed = max(0, hold.consumed + spent) if is_open else hold.consumed
    freed = (hold.amount if final else consumed) - hold.consumed if is_open else 0
    if is_open:
        _change_hold(db, hold, consumed=consumed, state="closed" if final else "open")
    changes = _transfer(db, hold, covered, "slice" if is_open else "correction", taker="cash")
    changes |= _transfer(db, hold, overrun, "overrun", taker="overrun")
    changes[hold.account] = _Change(spent + beyond, -freed)
    accounts = _post(db, changes, may_overdraw=beyond > 0)
    team = _tell(db, hold.machine, "settled" if final else "posted", spent + beyond)
    if beyond:
        reason = f"machine {hold.machine} cost ${money.to_decimal(beyond)} more than was held for it"
        _alarm(db, team, "overrun", [one for one in accounts if one.overdraft > 0], actor="ledger", reason=reason)
    if final:  # only then is money free again for those who wait
        db.hint()


# What was spent


def book(db: Read, account: UUID) -> list[TransferRow]:
    """The transfers of a job's account, oldest first."""
    mine = or_(TransferRow.debit == account, TransferRow.credit == account)
    return list(db.sql.scalars(select(TransferRow).where(mine).order_by(TransferRow.at, TransferRow.id)))


def billed(db: Read, machine: UUID) -> int:
    """What was posted for a machine so far."""
    hold = _newest_hold(db, machine)
    return 0 if hold is None else _posted(db, hold)


@dataclass(frozen=True)
class Discrepancy:
    """A total that isn't what its parts add up to."""

    account: UUID | None
    what: str
    expected: int
    found: int


def sweep(db: Read) -> list[Discrepancy]:
    """Compare every total with the sums it stands for; a healthy ledger has no discrepancy."""
    accounts = list(db.sql.scalars(select(AccountRow).order_by(AccountRow.level.desc(), AccountRow.id)))
    posted, held = _sums_of_transfers(db), _sums_of_holds(db)
    for one in accounts:  # leaves come first, so that an account is complete before it counts for its parent
        if one.parent is not None:
            posted[one.parent] += posted[one.id]
            held[one.parent] += held[one.id]
    found = [Discrepancy(one.id, "posted", posted[one.id], one.posted) for one in accounts]
    found += [Discrepancy(one.id, "held", held[one.id], one.held) for one in accounts]
    found += [Discrepancy(one.id, "overdraft", _due_overdraft(one), one.overdraft) for one in accounts]
    leaves = sum(one.posted for one in accounts if one.kind in ("job", "cash", "overrun"))
    return [one for one in [*found, Discrepancy(None, "sum of all", 0, leaves)] if one.expected != one.found]


def _sums_of_transfers(db: Read) -> Counter[UUID]:
    """Debits less credits of each account."""
    sums = Counter[UUID]()
    for account, amount in db.sql.execute(
        select(TransferRow.debit, func.sum(TransferRow.amount)).group_by(TransferRow.debit)
    ):
        sums[account] += int(amount)
    for account, amount in db.sql.execute(
        select(TransferRow.credit, func.sum(TransferRow.amount)).group_by(TransferRow.credit)
    ):
        sums[account] -= int(amount)
    return sums


def _sums_of_holds(db: Read) -> Counter[UUID]:
    """What the open holds of each account have left."""
    rest = func.sum(HoldRow.amount - HoldRow.consumed)
    rows = db.sql.execute(select(HoldRow.account, rest).where(HoldRow.state == "open").group_by(HoldRow.account))
    return Counter({account: int(amount) for account, amount in rows})


def _due_overdraft(one: AccountRow) -> int:
    return 0 if one.limit_micro is None else max(0, one.posted + one.held - one.limit_micro)


# Rows


@dataclass(frozen=True)
class _Change:
    posted: int = 0
    held: int = 0


def _hold(db: Write, amounts: Mapping[UUID, int]) -> None:
    """Hold on each account and all above it. Raises BudgetExceeded where there is no room."""
    for account, change in _spread(db, {leaf: _Change(held=amount) for leaf, amount in amounts.items()}):
        fits = or_(
            AccountRow.limit_micro.is_(None),
            AccountRow.posted + AccountRow.held + change.held <= AccountRow.limit_micro,
        )
        guarded = update(AccountRow).where(AccountRow.id == account.id, AccountRow.overdraft == 0, fits)
        if db.count(guarded.values(held=AccountRow.held + change.held)) != 1:
            raise _refusal(db, account.id, change.held)


def _post(db: Write, changes: Mapping[UUID, _Change], *, may_overdraw: bool = False) -> list[AccountRow]:
    """Change each account and all above it. An overdraft shrinks to what is in excess; it grows only if it may."""
    spread = _spread(db, changes)
    for account, change in spread:
        excess = _excess(AccountRow.posted + AccountRow.held + (change.posted + change.held) - AccountRow.limit_micro)
        keeps = case((AccountRow.overdraft < excess, AccountRow.overdraft), else_=excess)
        db.count(
            update(AccountRow)
            .where(AccountRow.id == account.id)
            .values(
                posted=AccountRow.posted + change.posted,
                held=AccountRow.held + change.held,
                overdraft=excess if may_overdraw else keeps,
            )
        )
    return [_get(db, account.id) for account, _ in spread]


def _excess(over: ColumnElement[int]) -> ColumnElement[int]:
    """`over` where it is positive; 0 elsewhere, and where there is no limit to be over."""
    return case((over > 0, over), else_=0)


def _spread(db: Write, changes: Mapping[UUID, _Change]) -> list[tuple[AccountRow, _Change]]:
    """Each account concerned with its change, in the order in which accounts are written."""
    accounts: dict[UUID, AccountRow] = {}
    posted, held = Counter[UUID](), Counter[UUID]()
    for leaf, change in changes.items():
        for account in path(db, leaf):
            accounts[account.id] = account
            posted[account.id] += change.posted
            held[account.id] += change.held
    in_order = sorted(accounts.values(), key=lambda account: (-account.level, account.id))
    return [(account, _Change(posted[account.id], held[account.id])) for account in in_order]


def _transfer(db: Write, hold: HoldRow, due: list[_Due], kind: str, *, taker: str) -> dict[UUID, _Change]:
    """Write slices, none for zero, a negative one the other way round; returns how the account of the taker changes."""
    other = _find(db, taker, path(db, hold.account)[-1].owner)
    for one in (one for one in due if one.amount):
        debit, credit = (hold.account, other.id) if one.amount > 0 else (other.id, hold.account)
        written = db.insert_new(
            TransferRow,
            id=new_id(),
            kind=kind,
            debit=debit,
            credit=credit,
            amount=abs(one.amount),
            hold=hold.id,
            machine=hold.machine,
            line=one.line.line,
            slice=_next_slice(db, hold.machine, one.line.line),
            at=db.now,
            actor="ledger",
            reason=one.line.text,
        )
        if not written:
            raise StaleTransition(f"Another settled machine {hold.machine} at the same time.")
    return {other.id: _Change(posted=-_sum(due))}


def _next_slice(db: Read, machine: UUID, line: str) -> int:
    last = select(func.max(TransferRow.slice)).where(TransferRow.machine == machine, TransferRow.line == line)
    return (db.sql.scalar(last) or 0) + 1


def _posted(db: Read, hold: HoldRow, line: str | None = None) -> int:
    """What was posted for the hold's machine: for one line, or for all."""
    amount = case((TransferRow.debit == hold.account, TransferRow.amount), else_=-TransferRow.amount)
    query = select(func.sum(amount)).where(TransferRow.machine == hold.machine)
    return int(db.sql.scalar(query if line is None else query.where(TransferRow.line == line)) or 0)


def _newest_hold(db: Read, machine: UUID) -> HoldRow | None:
    return db.sql.scalar(select(HoldRow).where(HoldRow.machine == machine).order_by(HoldRow.no.desc()).limit(1))


def _insert(db: Write, wanted: Wanted) -> HoldRow:
    last = db.sql.scalar(select(func.max(HoldRow.no)).where(HoldRow.machine == wanted.machine)) or 0
    hold_id = new_id()
    placed = db.insert_new(
        HoldRow,
        id=hold_id,
        machine=wanted.machine,
        no=last + 1,
        account=wanted.account,
        rate_cap=wanted.rate_cap,
        amount=wanted.amount,
        consumed=0,
        funded_until=wanted.funded_until,
        state="open",
    )
    if not placed:
        raise StaleTransition(f"Machine {wanted.machine} already has an open hold.")
    return db.sql.get_one(HoldRow, hold_id)


def _change_hold(db: Write, hold: HoldRow, *, consumed: int, state: str) -> None:
    """Guarded by all that the decision was made on."""
    seen = (
        HoldRow.id == hold.id,
        HoldRow.state == "open",
        HoldRow.amount == hold.amount,
        HoldRow.consumed == hold.consumed,
    )
    if db.count(update(HoldRow).where(*seen).values(consumed=consumed, state=state)) != 1:
        raise StaleTransition(f"Another changed the hold of machine {hold.machine} at the same time.")


def _open(db: Write, kind: str, owner: str, parent: UUID | None, limit: int | None = None) -> AccountRow:
    row = {"kind": kind, "owner": owner, "period": "", "parent": parent, "level": LEVELS[kind], "limit_micro": limit}
    if (known := db.sql.scalar(_of(kind, owner))) is not None:
        return known
    db.insert_new(AccountRow, id=new_id(), **row)
    return _find(db, kind, owner)


def _find(db: Read, kind: str, owner: str) -> AccountRow:
    account = db.sql.scalar(_of(kind, owner))
    if account is None:
        raise NotFound(f"There is no {kind} account of {owner}.")
    return account


def _of(kind: str, owner: str) -> Select[AccountRow]:
    return select(AccountRow).where(AccountRow.kind == kind, AccountRow.owner == owner, AccountRow.period == "")


def _get(db: Read, account: UUID) -> AccountRow:
    found = db.sql.scalar(select(AccountRow).where(AccountRow.id == account))
    if found is None:
        raise NotFound("There is no such budget.")
    return found


def _teams_below(db: Read, account: AccountRow) -> list[UUID]:
    """The teams whose money an account limits."""
    if account.kind == "org":
        owners = (
            select(AccountRow.owner)
            .where(AccountRow.kind == "team", AccountRow.parent == account.id)
            .order_by(AccountRow.owner)
        )
        return [UUID(owner) for owner in db.sql.scalars(owners)]
    return [UUID(one.owner) for one in path(db, account.id) if one.kind == "team"]


# Words


def _refusal(db: Read, account_id: UUID, need: int) -> BudgetExceeded:
    account = _get(db, account_id)
    name, room = title(db, account), left(account) or 0
    if account.overdraft > 0:
        message = f"The {name} is overdrawn by ${money.to_decimal(account.overdraft)}: nothing more can be held."
    else:
        limit, used = money.to_decimal(account.limit_micro or 0), money.to_decimal(account.posted + account.held)
        message = f"This needs ${money.to_decimal(need)}; of the ${limit} of the {name}, ${used} is spent or held."
    return BudgetExceeded(
        message,
        hint="Wait for running jobs to end, or have the limit raised: shoestring budget set.",
        account=str(account.id),
        account_title=name,
        need=money.to_decimal(need),
        left=money.to_decimal(room),
        short_by=money.to_decimal(need - room),
    )


def _tell(db: Write, machine: UUID, what: str, amount: int, reason: str = "") -> UUID:
    """Put a movement of money into the feed of the job's team; returns the team."""
    job = db.sql.execute(
        select(JobRow.id, JobRow.team_id, MachineRow.attempt)
        .join(MachineRow, MachineRow.job == JobRow.id)
        .where(MachineRow.id == machine)
    ).one()
    data = {"what": what, "machine": str(machine), "amount": money.to_decimal(amount)}
    db.event(team=job.team_id, kind="cost", actor="ledger", reason=reason, job=job.id, attempt=job.attempt, data=data)
    team: UUID = job.team_id
    return team


def _alarm(db: Write, team: UUID, what: str, overdrawn: list[AccountRow], *, actor: str, reason: str) -> None:
    accounts = [{"account": title(db, one), "overdraft": money.to_decimal(one.overdraft)} for one in overdrawn]
    db.event(team=team, kind="alarm", actor=actor, reason=reason, data={"alarm": what, "overdrawn": accounts})


def _text(amount: int | None) -> str | None:
    return None if amount is None else money.to_decimal(amount)

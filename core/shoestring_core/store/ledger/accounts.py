# SPDX-License-Identifier: Apache-2.0
"""Accounts: organization > team > member > job, and the counterparties of what is spent, cash and overrun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, bindparam, select

from shoestring_core.errors import NotFound
from shoestring_core.store.tables import AccountRow, JobRow, TeamRow, UserRow
from shoestring_core.store.transactions import Read, Write, with_clock
from shoestring_core.store.uuid7 import uuid7

LEVELS = {"org": 0, "team": 1, "member": 2, "job": 3, "cash": 9, "overrun": 9}


def create_accounts(db: Write, org: str, team: UUID, member: UUID | None = None) -> AccountRow:
    """The account of a team, or of a member in it. Missing accounts are created, without a limit."""
    root = _create(db, "org", org, parent=None)
    for counterparty in ("cash", "overrun"):
        _create(db, counterparty, org, parent=None)
    account = _create(db, "team", str(team), parent=root.id)
    return account if member is None else _create(db, "member", f"{team}/{member}", parent=account.id)


def create_job_account(db: Write, job: UUID, member: AccountRow, limit_micro: int | None, *, defer: bool) -> AccountRow:
    """The account of a new job, below that of its member. `defer`: it is written at the transaction's end."""
    account = AccountRow(**_new("job", str(job), member.id, limit_micro))
    db.insert(account, defer=defer)
    return account


def ensure_member_accounts(db: Write, team: UUID, user: UUID) -> list[AccountRow]:
    """The account of a member and those above it, leaf first. The member's is created if it is missing."""
    owner = f"{team}/{user}"
    if found := db.values(AccountRow, _MEMBER_UPWARD, owner=owner):
        return found
    _create(db, "member", owner, parent=team_account(db, team).id)
    return db.values(AccountRow, _MEMBER_UPWARD, owner=owner)


def belongs_to(account: AccountRow, team: UUID, user: UUID) -> bool:
    """Whether it is a member's own budget."""
    return account.kind == "member" and account.owner == f"{team}/{user}"


def paying_accounts(db: Read, team: UUID, user: UUID) -> list[AccountRow]:
    """The accounts that pay for a member's jobs, the member's first; that of a new member may not exist yet."""
    return accounts_upward(db, "member", [f"{team}/{user}"]) or accounts_upward(db, "team", [str(team)])


def job_account(db: Read, job: UUID) -> AccountRow:
    return account_of(db, "job", str(job))


def team_account(db: Read, team: UUID) -> AccountRow:
    return account_of(db, "team", str(team))


def account_of(db: Read, kind: str, owner: str) -> AccountRow:
    """Raises NotFound."""
    account = _find(db, kind, owner)
    if account is None:
        raise NotFound(f"There is no {kind} account of {owner}.")
    return account


def load_account(db: Read, account_id: UUID) -> AccountRow:
    """Raises NotFound."""
    found = db.values(AccountRow, _BY_ID, account=account_id)
    if not found:
        raise NotFound("There is no such budget.")
    return found[0]


def ancestors(db: Read, account: UUID) -> list[AccountRow]:
    """The account itself and those above it, leaf first."""
    return db.values(AccountRow, _ANCESTORS, account=account)


def accounts_upward(db: Read, kind: str, owners: Sequence[str]) -> list[AccountRow]:
    """The accounts of these owners and all above them, each once, leaves first. Of missing ones there are none."""
    return db.values(AccountRow, _UPWARD, kind=kind, owners=owners)


def team_budgets(db: Read, team: UUID) -> list[AccountRow]:
    """The budgets that a team sees: the organization's account, the team's and its members'."""
    account = team_account(db, team)
    members = select(AccountRow).where(AccountRow.kind == "member", AccountRow.parent == account.id)
    return [*reversed(ancestors(db, account.id)), *db.sql.scalars(members.order_by(AccountRow.id))]


def period_limit(account: AccountRow) -> int | None:
    """What an account may spend in its period; None: it has no limit."""
    return None if account.limit_micro is None else account.limit_micro - account.period_base


def period_use(account: AccountRow) -> tuple[int, int]:
    """What was spent of an account in its period, and what is held of it. What was held at its border isn't."""
    return account.posted + account.carried - account.period_base, account.held - account.carried


def visible_account(db: Read, team: UUID, account: UUID) -> AccountRow:
    """An account that a team may see: its own, those above it and those below. Raises NotFound for any other."""
    chain, top = ancestors(db, account), team_account(db, team)
    below = any(row.id == top.id for row in chain)
    if not below and not any(row.id == account for row in ancestors(db, top.id)):
        raise NotFound("There is no such budget.", hint="`shoestring budget show` lists the budgets you can see.")
    return chain[0]


def teams_below(db: Read, account: AccountRow) -> list[UUID]:
    """The teams whose spending an account limits."""
    if account.kind == "org":
        owners = select(AccountRow.owner).where(AccountRow.kind == "team", AccountRow.parent == account.id)
        return [UUID(owner) for owner in db.sql.scalars(owners.order_by(AccountRow.owner))]
    return [UUID(row.owner) for row in ancestors(db, account.id) if row.kind == "team"]


def title(db: Read, account: AccountRow) -> str:
    """The account's name for people: `team vision`, `job digits`."""
    return titles(db, [account])[account.id]


def titles(db: Read, accounts: Sequence[AccountRow]) -> dict[UUID, str]:
    """The names of accounts for people, by id."""
    named = {row.id: f"organization {row.owner}" if row.kind == "org" else row.kind for row in accounts}
    tables: dict[str, type[TeamRow | UserRow | JobRow]] = {"team": TeamRow, "member": UserRow, "job": JobRow}
    for kind, table in tables.items():
        owners = {row.id: UUID(row.owner.rpartition("/")[2]) for row in accounts if row.kind == kind}
        if owners:
            names = dict(db.sql.execute(select(table.id, table.name).where(table.id.in_(set(owners.values())))).all())
            named |= {account: f"{kind} {names[owner]}" for account, owner in owners.items()}
    return named


def _create(db: Write, kind: str, owner: str, parent: UUID | None) -> AccountRow:
    if (existing := _find(db, kind, owner)) is not None:
        return existing
    db.insert_new(AccountRow, **_new(kind, owner, parent))
    return account_of(db, kind, owner)


def _new(kind: str, owner: str, parent: UUID | None, limit_micro: int | None = None) -> dict[str, Any]:
    return {
        "id": uuid7(), "kind": kind, "owner": owner, "period": "", "parent": parent, "level": LEVELS[kind],
        "limit_micro": limit_micro,
    }  # fmt: skip


def _find(db: Read, kind: str, owner: str) -> AccountRow | None:
    found = db.values(AccountRow, _BY_OWNER, kind=kind, owner=owner)
    return found[0] if found else None


def _upward(*leaves: ColumnElement[bool]) -> Select[AccountRow]:
    upward = select(AccountRow.id, AccountRow.parent).where(*leaves).cte("upward", recursive=True)
    upward = upward.union(select(AccountRow.id, AccountRow.parent).where(AccountRow.id == upward.c.parent))
    return select(AccountRow).join(upward, AccountRow.id == upward.c.id).order_by(AccountRow.level.desc())


_ANCESTORS = _upward(AccountRow.id == bindparam("account"))
_UPWARD = _upward(
    AccountRow.kind == bindparam("kind"),
    AccountRow.owner.in_(bindparam("owners", expanding=True)),
    AccountRow.period == "",
)
_MEMBER_UPWARD = with_clock(
    _upward(AccountRow.kind == "member", AccountRow.owner == bindparam("owner"), AccountRow.period == "")
)
_BY_ID = select(AccountRow).where(AccountRow.id == bindparam("account"))
_BY_OWNER = select(AccountRow).where(
    AccountRow.kind == bindparam("kind"), AccountRow.owner == bindparam("owner"), AccountRow.period == ""
)

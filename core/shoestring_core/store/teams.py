# SPDX-License-Identifier: Apache-2.0
"""Teams: made by an admin of another team of the same organization."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select

from shoestring_core import money, wording
from shoestring_core.errors import InvalidRequest, TooMany
from shoestring_core.names import MAX_NAME, is_name, one_spelling
from shoestring_core.store import identity, ledger
from shoestring_core.store.identity import Principal
from shoestring_core.store.tables import MembershipRow, TeamRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording import people

MAX_TEAMS = 50
"""Of which one person is an admin, and so may make another."""

NEW_TEAM_BUDGET = 10 * money.MICRO
"""What a new team may spend until one of its admins sets another limit."""


def create(db: Write, maker: Principal, name: str) -> Principal:
    """A team of the organization of the maker's, with an account and the maker as its admin; the maker in it.

    Raises InvalidRequest for a name that is taken or can't be one, TooMany.
    """
    identity.lock_member(db, maker)
    name = one_spelling(name)
    if not is_name(name):
        raise InvalidRequest(wording.sentence(people.OddName(MAX_NAME)))
    if _teams_of_admin(db, maker.user) >= MAX_TEAMS:
        raise TooMany(f"You are an admin of {MAX_TEAMS} teams.", hint="Leave the making of others to somebody else.")
    team = uuid7()
    if not db.insert_new(TeamRow, id=team, name=name, feed_seq=0):
        raise InvalidRequest(wording.sentence(people.NameTaken(name)))
    db.insert_new(MembershipRow, team_id=team, user_id=maker.user, role="admin")
    org = ledger.ancestors(db, ledger.team_account(db, maker.team).id)[-1].owner
    ledger.create_accounts(db, org, team, maker.user)
    account = ledger.team_account(db, team).id
    ledger.set_limit(db, account, NEW_TEAM_BUDGET, actor=maker.actor, reason="A new team.")
    return identity.load_principal(
        db, maker.user, team, key=maker.key, expires_at=maker.expires_at, scopes=maker.scopes
    )


def _teams_of_admin(db: Read, user: UUID) -> int:
    mine = select(func.count()).where(MembershipRow.user_id == user, MembershipRow.role == "admin")
    return db.sql.scalar(mine) or 0

# SPDX-License-Identifier: Apache-2.0
"""The members of teams: who they are, their roles, and their removal."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, select, update

from shoestring_core.errors import Forbidden, NotFound
from shoestring_core.store.identity import Role
from shoestring_core.store.tables import KeyRow, MembershipRow, SessionRow, TeamRow, UserRow
from shoestring_core.store.transactions import Read, Write


@dataclass(frozen=True)
class Member:
    """`keys`: how many API keys of theirs in the team are valid."""

    team: str
    user: str
    role: Role
    keys: int


def load_members(db: Read, team: str | None = None) -> list[Member]:
    """The members of a team, or of all teams, by name."""
    valid_keys = (
        select(func.count())
        .where(
            KeyRow.team_id == TeamRow.id,
            KeyRow.user_id == UserRow.id,
            KeyRow.kind != "login",
            KeyRow.revoked_at.is_(None),
            func.coalesce(KeyRow.expires_at, db.now + 1) > db.now,
        )
        .scalar_subquery()
    )
    found = (
        select(TeamRow.name, UserRow.name, MembershipRow.role, valid_keys)
        .join(MembershipRow, MembershipRow.team_id == TeamRow.id)
        .join(UserRow, UserRow.id == MembershipRow.user_id)
        .order_by(TeamRow.name, UserRow.name)
    )
    if team is not None:
        found = found.where(TeamRow.name == team)
    return [Member(*row) for row in db.sql.execute(found)]


def set_role(db: Write, team: str, user: str, role: Role) -> None:
    """Raises NotFound; Forbidden if the team would have no admin."""
    membership = _find(db, team, user)
    if role != "admin":
        _require_another_admin(db, membership, team, user)
    same = (MembershipRow.team_id == membership.team_id, MembershipRow.user_id == membership.user_id)
    db.execute(update(MembershipRow).where(*same).values(role=role))


def remove(db: Write, team: str, user: str) -> None:
    """End a membership, and with it the member's keys, login codes and browser sessions in the team.

    Their jobs and what these cost stay the team's. Raises NotFound; Forbidden if the team would have no admin.
    """
    membership = _find(db, team, user)
    _require_another_admin(db, membership, team, user)
    for table in (MembershipRow, SessionRow):
        db.execute(delete(table).where(table.team_id == membership.team_id, table.user_id == membership.user_id))
    own_keys = (KeyRow.team_id == membership.team_id, KeyRow.user_id == membership.user_id)
    db.execute(update(KeyRow).where(*own_keys, KeyRow.revoked_at.is_(None)).values(revoked_at=db.now))


def _find(db: Write, team: str, user: str) -> MembershipRow:
    """The membership, which nobody else changes before the commit; nor that of any other member of the team."""
    db.execute(update(TeamRow).where(TeamRow.name == team).values(name=TeamRow.name))
    found = (
        select(MembershipRow)
        .join(TeamRow, TeamRow.id == MembershipRow.team_id)
        .join(UserRow, UserRow.id == MembershipRow.user_id)
        .where(TeamRow.name == team, UserRow.name == user)
    )
    membership = db.sql.scalar(found)
    if membership is None:
        raise NotFound(f"{user} is no member of team {team}.", hint="List all: python -m shoestring_api.admin members")
    return membership


def _require_another_admin(db: Read, membership: MembershipRow, team: str, user: str) -> None:
    others = select(func.count()).where(
        MembershipRow.team_id == membership.team_id,
        MembershipRow.user_id != membership.user_id,
        MembershipRow.role == "admin",
    )
    if membership.role == "admin" and not db.sql.scalar(others):
        raise Forbidden(f"{user} is the only admin of team {team}.", hint="Make another member an admin first.")

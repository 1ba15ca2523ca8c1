# SPDX-License-Identifier: Apache-2.0
"""The members of teams: who they are, their roles, and their removal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast
from uuid import UUID

from sqlalchemy import bindparam, delete, func, or_, select, update
from sqlalchemy.orm import aliased

from shoestring_core.decide.access import Role
from shoestring_core.errors import Forbidden, NotFound
from shoestring_core.store.tables import InvitationRow, KeyRow, MembershipRow, SessionRow, TeamRow, UserRow
from shoestring_core.store.transactions import Read, Write


@dataclass(frozen=True)
class Member:
    """`keys`: how many API keys of theirs in the team are valid."""

    id: UUID
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
        select(UserRow.id, TeamRow.name, UserRow.name, MembershipRow.role, valid_keys)
        .join(MembershipRow, MembershipRow.team_id == TeamRow.id)
        .join(UserRow, UserRow.id == MembershipRow.user_id)
        .order_by(TeamRow.name, UserRow.name)
    )
    if team is not None:
        found = found.where(TeamRow.name == team)
    return [Member(*row) for row in db.sql.execute(found)]


@dataclass(frozen=True)
class Team:
    """A team, as one of its members sees it."""

    id: UUID
    name: str
    role: Role
    members: int


def load_teams(db: Read, user: UUID) -> list[Team]:
    """The teams that a user is a member of, by name."""
    other = aliased(MembershipRow)
    members = select(func.count()).where(other.team_id == TeamRow.id).scalar_subquery()
    found = (
        select(TeamRow.id, TeamRow.name, MembershipRow.role, members)
        .join(MembershipRow, MembershipRow.team_id == TeamRow.id)
        .where(MembershipRow.user_id == user)
        .order_by(TeamRow.name)
    )
    return [Team(*row) for row in db.sql.execute(found)]


def find_member(db: Read, team: str, user: str) -> tuple[UUID, UUID]:
    """The ids of a team and a user in it, by their names. Raises NotFound."""
    found = db.row(_BY_NAME, team=team, user=user)
    if found is None:
        raise NotFound(f"{user} is no member of team {team}.", hint="List all: python -m shoestring_api.admin members")
    return found.team_id, found.user_id


def set_role(db: Write, team: UUID, user: UUID, role: Role) -> Role:
    """Returns the role before. Raises NotFound; Forbidden if the team would have no admin."""
    membership = _lock(db, team, user)
    if role != "admin":
        _require_another_admin(db, membership)
    same = (MembershipRow.team_id == team, MembershipRow.user_id == user)
    db.execute(update(MembershipRow).where(*same).values(role=role))
    if role != "admin":
        _revoke_invitations(db, team, user)
    return cast("Role", membership.role)


def remove(db: Write, team: UUID, user: UUID) -> str:
    """End a membership, and with it the member's keys, login codes and browser sessions in the team.

    Their jobs and what these cost stay the team's. Returns their name. Raises NotFound; Forbidden if the team would
    have no admin.
    """
    _require_another_admin(db, _lock(db, team, user))
    for table in (MembershipRow, SessionRow):
        db.execute(delete(table).where(table.team_id == team, table.user_id == user))
    _revoke_invitations(db, team, user)
    own_keys = (KeyRow.team_id == team, KeyRow.user_id == user)
    db.execute(update(KeyRow).where(*own_keys, KeyRow.revoked_at.is_(None)).values(revoked_at=db.now))
    return db.sql.get_one(UserRow, user).name


def _lock(db: Write, team: UUID, user: UUID) -> MembershipRow:
    """The membership, which nobody else changes before the commit; nor that of any other member of the team."""
    db.execute(update(TeamRow).where(TeamRow.id == team).values(name=TeamRow.name))
    membership = db.sql.get(MembershipRow, (team, user))
    if membership is None:
        raise NotFound("There is no such member.", hint="`shoestring members ls` lists those of your team.")
    return membership


def _revoke_invitations(db: Write, team: UUID, user: UUID) -> None:
    """Those that a member made or could be signed in by: nobody comes back by a link that was made before."""
    name = select(UserRow.name).where(UserRow.id == user).scalar_subquery()
    theirs = or_(InvitationRow.made_by == name, InvitationRow.user_id == user)
    unused = (InvitationRow.team_id == team, InvitationRow.used_at.is_(None), InvitationRow.revoked_at.is_(None))
    db.execute(update(InvitationRow).where(theirs, *unused).values(revoked_at=db.now))


def _require_another_admin(db: Read, membership: MembershipRow) -> None:
    others = select(func.count()).where(
        MembershipRow.team_id == membership.team_id,
        MembershipRow.user_id != membership.user_id,
        MembershipRow.role == "admin",
    )
    if membership.role == "admin" and not db.sql.scalar(others):
        user = db.sql.get_one(UserRow, membership.user_id).name
        team = db.sql.get_one(TeamRow, membership.team_id).name
        raise Forbidden(f"{user} is the only admin of team {team}.", hint="Make another member an admin first.")


_BY_NAME = (
    select(MembershipRow.team_id, MembershipRow.user_id)
    .join(TeamRow, TeamRow.id == MembershipRow.team_id)
    .join(UserRow, UserRow.id == MembershipRow.user_id)
    .where(TeamRow.name == bindparam("team"), UserRow.name == bindparam("user"))
)

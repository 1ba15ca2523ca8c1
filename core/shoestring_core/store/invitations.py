# SPDX-License-Identifier: Apache-2.0
"""Invitations: links by which somebody becomes a member of a team, once; and class lists, a link for each member."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast
from uuid import UUID

from sqlalchemy import select, update

from shoestring_core import wording
from shoestring_core.decide.access import Role
from shoestring_core.decide.class_list import NewMember, parse_class_list, taken_name
from shoestring_core.errors import InvalidList, InvalidRequest, InvalidState, NotFound, Unauthenticated
from shoestring_core.names import MAX_NAME, is_name, one_spelling
from shoestring_core.store import identity, ledger, sessions
from shoestring_core.store.identity import Principal
from shoestring_core.store.tables import InvitationRow, MembershipRow, TeamRow, UserRow
from shoestring_core.store.tokens import generate_secret, hash_secret, is_well_formed
from shoestring_core.store.transactions import Read, Write
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording import people

LISTED = 200
"""Of a team's invitations, the newest."""


def invite(
    db: Write,
    maker: Principal,
    role: Role,
    expires_at: int,
    *,
    limit_micro: int | None = None,
    user: UUID | None = None,
) -> tuple[InvitationRow, str]:
    """An invitation and its code, which is stored nowhere. The rest as in InvitationRow."""
    secret = generate_secret("invite")
    row = InvitationRow(
        id=uuid7(), hash=hash_secret(secret), team_id=maker.team, user_id=user, role=role, limit_micro=limit_micro,
        made_by=maker.user_name, created_at=db.now, expires_at=expires_at, used_at=None, used_by=None, revoked_at=None,
    )  # fmt: skip
    db.insert(row)
    return row, secret


def load_invitations(db: Read, team: UUID) -> Sequence[InvitationRow]:
    """The newest of a team."""
    query = select(InvitationRow).where(InvitationRow.team_id == team)
    return db.sql.scalars(query.order_by(InvitationRow.created_at.desc(), InvitationRow.id.desc()).limit(LISTED)).all()


def revoke(db: Write, team: UUID, invitation: UUID) -> None:
    """Again, or when it was used: no effect. Raises NotFound."""
    own = (InvitationRow.id == invitation, InvitationRow.team_id == team)
    if db.sql.scalar(select(InvitationRow.id).where(*own)) is None:
        raise NotFound("There is no such invitation.", hint="`shoestring members invitations` lists them.")
    open_ = (InvitationRow.used_at.is_(None), InvitationRow.revoked_at.is_(None))
    db.execute(update(InvitationRow).where(*own, *open_).values(revoked_at=db.now))


def read(db: Read, code: str) -> tuple[InvitationRow, str, str | None]:
    """An invitation that can be taken, the name of its team, and of whom it signs in, if it is for a member.

    Raises as `take`.
    """
    row = _require_open(db, code)
    user = None if row.user_id is None else identity.load_principal(db, row.user_id, row.team_id).user_name
    return row, db.sql.scalars(select(TeamRow.name).where(TeamRow.id == row.team_id)).one(), user


def take(db: Write, code: str, name: str | None, place: sessions.Place) -> tuple[Principal, sessions.NewSession]:
    """Become a member, and sign the browser in.

    name  of a new user; of an invitation for somebody who is a member already: theirs, or None
    Raises Unauthenticated for an unknown code, InvalidState if it was used or revoked or has expired, InvalidRequest
    for a name that can't be theirs.
    """
    row = _require_open(db, code)
    name = name and one_spelling(name)
    taker = _existing(db, row, name) if row.user_id is not None else _join(db, row, name or "")
    untaken = (InvitationRow.id == row.id, InvitationRow.used_at.is_(None), InvitationRow.revoked_at.is_(None))
    if db.execute(update(InvitationRow).where(*untaken).values(used_at=db.now, used_by=taker.user)) != 1:
        raise InvalidState(people.InvitationUsed())
    return taker, sessions.open_session(db, taker, place)


def import_members(
    db: Write, maker: Principal, text: str, expires_at: int
) -> list[tuple[NewMember, InvitationRow, str]]:
    """Make a member with a budget of each line of a class list, and an invitation that signs each of them in, once.

    Raises InvalidList, which names each line that is odd: then nobody is a member.
    """
    members, problems = parse_class_list(text)
    names = [member.name for member in members]
    taken = set(db.sql.scalars(select(UserRow.name).where(UserRow.name.in_(names))))
    problems += [taken_name(member) for member in members if member.name in taken]
    if problems:
        raise InvalidList(problems)
    made = []
    for member in members:
        user = _add_member(db, maker.team, member.name, member.role, member.limit_micro, maker.actor)
        row, secret = invite(db, maker, member.role, expires_at, limit_micro=member.limit_micro, user=user)
        made.append((member, row, secret))
    return made


def _require_open(db: Read, code: str) -> InvitationRow:
    row = (
        db.sql.scalar(select(InvitationRow).where(InvitationRow.hash == hash_secret(code)))
        if is_well_formed(code)
        else None
    )
    if row is None:
        raise Unauthenticated("This is no invitation of this service.", hint="Copy the whole link.")
    if row.used_at is not None:
        raise InvalidState(people.InvitationUsed())
    if row.revoked_at is not None:
        raise InvalidState(people.InvitationRevoked())
    if row.expires_at <= db.now:
        raise InvalidState(people.InvitationExpired())
    return row


def _existing(db: Read, row: InvitationRow, name: str | None) -> Principal:
    assert row.user_id is not None
    member = identity.load_principal(db, row.user_id, row.team_id)
    if name is not None and name != member.user_name:
        raise InvalidRequest("This invitation is for somebody else.", hint="Leave the name out.")
    return member


def _join(db: Write, row: InvitationRow, name: str) -> Principal:
    if not is_name(name):
        raise InvalidRequest(wording.sentence(people.OddName(MAX_NAME)))
    user = _add_member(db, row.team_id, name, cast("Role", row.role), row.limit_micro, row.made_by)
    return identity.load_principal(db, user, row.team_id)


def _add_member(db: Write, team: UUID, name: str, role: Role, limit: int | None, actor: str) -> UUID:
    """A new user, with a membership and a budget. Raises InvalidRequest for a name that is taken."""
    user = uuid7()
    if not db.insert_new(UserRow, id=user, name=name, created_at=db.now):
        raise InvalidRequest(wording.sentence(people.NameTaken(name)))
    db.insert_new(MembershipRow, team_id=team, user_id=user, role=role)
    account = ledger.ensure_member_accounts(db, team, user)[0]
    if limit is not None:
        ledger.set_limit(db, account.id, limit, actor=actor, reason="")
    return user

# SPDX-License-Identifier: Apache-2.0
"""Identity: users, teams and their members, API keys, and the principal that a request acts as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from sqlalchemy import delete, select, update

from shoestring_core.errors import NotFound, Unauthenticated
from shoestring_core.store import ledger
from shoestring_core.store.db import Read, Write
from shoestring_core.store.tables import KeyRow, MembershipRow, SessionRow, TeamRow, UserRow
from shoestring_core.store.tokens import SecretKind, generate_secret, hash_secret, is_well_formed
from shoestring_core.store.uuid7 import uuid7

Role = Literal["admin", "member"]


@dataclass(frozen=True)
class Principal:
    """An authenticated user, acting in one team.

    key   the API key used; None in a browser's session
    csrf  the token that a browser must send with unsafe methods; None with an API key
    """

    user: UUID
    user_name: str
    team: UUID
    team_name: str
    role: Role
    key: UUID | None = None
    csrf: str | None = None

    @property
    def actor(self) -> str:
        """The name under which events record what this principal did."""
        return self.user_name


# Teams and users


def ensure_admin(db: Write, org: str, team: str, user: str) -> Principal:
    """An admin of a team of an organisation. Whatever is missing is created."""
    return ensure_member(db, org, team, user, role="admin")


def ensure_member(db: Write, org: str, team: str, user: str, *, role: Role = "member") -> Principal:
    """A member of a team. Whatever is missing is created, with its accounts; an existing role stays."""
    db.insert_new(UserRow, id=uuid7(), name=user, created_at=db.now)
    db.insert_new(TeamRow, id=uuid7(), name=team, feed_seq=0)
    user_id = db.sql.execute(select(UserRow.id).where(UserRow.name == user)).scalar_one()
    team_id = db.sql.execute(select(TeamRow.id).where(TeamRow.name == team)).scalar_one()
    db.insert_new(MembershipRow, team_id=team_id, user_id=user_id, role=role)
    ledger.create_accounts(db, org, team_id, user_id)
    return load_principal(db, user_id, team_id)


# Keys


def create_key(db: Write, kind: SecretKind, user: UUID, team: UUID, expires_at: int | None) -> tuple[KeyRow, str]:
    """Create a key; returns it and its secret, which is stored nowhere. `expires_at` in µs UTC; None: never."""
    key_id, secret = uuid7(), generate_secret(kind)
    db.insert_new(
        KeyRow,
        id=key_id,
        kind=kind,
        hash=hash_secret(secret),
        user_id=user,
        team_id=team,
        created_at=db.now,
        expires_at=expires_at,
        revoked_at=None,
    )
    return db.sql.get_one(KeyRow, key_id), secret


def revoke_key(db: Write, team: UUID, key: UUID) -> None:
    """Revoke a key of the team, and with it its owner's login codes and browser sessions.

    Again: no effect. Raises NotFound.
    """
    owner = db.sql.scalar(select(KeyRow.user_id).where(KeyRow.id == key, KeyRow.team_id == team))
    if owner is None:
        raise NotFound("There is no such key.")
    if db.execute(update(KeyRow).where(KeyRow.id == key, KeyRow.revoked_at.is_(None)).values(revoked_at=db.now)):
        login_codes = (
            KeyRow.user_id == owner,
            KeyRow.team_id == team,
            KeyRow.kind == "login",
            KeyRow.revoked_at.is_(None),
        )
        db.execute(update(KeyRow).where(*login_codes).values(revoked_at=db.now))
        db.execute(delete(SessionRow).where(SessionRow.user_id == owner, SessionRow.team_id == team))


def authenticate(db: Read, secret: str) -> Principal:
    """The principal of an API key. Raises Unauthenticated, which names the problem."""
    if not is_well_formed(secret):
        raise Unauthenticated(
            "This is not an API key, or it was mistyped.",
            hint="A key looks like sst_pat_ and 36 letters and digits; copy all of it.",
        )
    key = db.sql.scalar(select(KeyRow).where(KeyRow.hash == hash_secret(secret), KeyRow.kind != "login"))
    if key is None:
        raise Unauthenticated("Unknown API key.", hint="Check that it was issued by this service.")
    if key.revoked_at is not None:
        raise Unauthenticated("This API key was revoked.", hint="Ask an admin of your team for a new one.")
    if key.expires_at is not None and key.expires_at <= db.now:
        raise Unauthenticated("This API key has expired.", hint="Ask an admin of your team for a new one.")
    return load_principal(db, key.user_id, key.team_id, key=key.id)


def load_principal(
    db: Read,
    user: UUID,
    team: UUID,
    *,
    key: UUID | None = None,
    csrf: str | None = None,
) -> Principal:
    """The principal of a user acting in a team. Raises Unauthenticated if they are no member any more."""
    row = db.sql.execute(
        select(UserRow.name.label("user"), TeamRow.name.label("team"), MembershipRow.role)
        .join(MembershipRow, MembershipRow.user_id == UserRow.id)
        .join(TeamRow, TeamRow.id == MembershipRow.team_id)
        .where(UserRow.id == user, TeamRow.id == team)
    ).one_or_none()
    if row is None:
        raise Unauthenticated("You are no longer a member of this team.", hint="Ask one of its admins.")
    return Principal(user, row.user, team, row.team, row.role, key, csrf)

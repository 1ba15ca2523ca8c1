# SPDX-License-Identifier: Apache-2.0
"""Browser sessions, and the one-time login codes that open them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, select, update

from shoestring_core.errors import Unauthenticated
from shoestring_core.store import identity
from shoestring_core.store.db import Read, Write
from shoestring_core.store.tables import KeyRow, SessionRow
from shoestring_core.store.tokens import hash_secret, is_well_formed

S = 1_000_000
LOGIN_CODE_TTL = 600 * S
SESSION_TTL = 14 * 86_400 * S


@dataclass(frozen=True)
class NewSession:
    """A new session: the cookie's secret, and the CSRF token that unsafe methods must send."""

    secret: str
    csrf: str
    expires_at: int


def create_login_code(db: Write, user: UUID, team: UUID) -> str:
    """A login code for a link: valid once, for ten minutes."""
    return identity.create_key(db, "login", user, team, db.now + LOGIN_CODE_TTL)[1]


def redeem_login_code(db: Write, code: str) -> NewSession:
    """Open a session for a login code. Raises Unauthenticated if it was used, has expired or is unknown."""
    unused = (
        KeyRow.hash == hash_secret(code),
        KeyRow.kind == "login",
        KeyRow.revoked_at.is_(None),
        KeyRow.expires_at > db.now,
    )
    if not is_well_formed(code) or db.execute(update(KeyRow).where(*unused).values(revoked_at=db.now)) != 1:
        raise Unauthenticated(
            "This link was used already, or it is older than ten minutes.",
            hint="Sign in with an API key, or run `shoestring open` for a new link.",
        )
    key = db.sql.execute(select(KeyRow).where(KeyRow.hash == hash_secret(code))).scalar_one()
    return open_session(db, key.user_id, key.team_id)


def open_session(db: Write, user: UUID, team: UUID, key: UUID | None = None) -> NewSession:
    """Sign a browser in. `key`: the API key it signs in with, which the session doesn't outlive."""
    db.execute(delete(SessionRow).where(SessionRow.expires_at <= db.now))
    key_expires_at = db.sql.scalar(select(KeyRow.expires_at).where(KeyRow.id == key))
    expires_at = min(db.now + SESSION_TTL, key_expires_at or db.now + SESSION_TTL)
    new = NewSession(secrets.token_urlsafe(32), secrets.token_urlsafe(24), expires_at)
    db.insert_new(
        SessionRow,
        hash=hash_secret(new.secret),
        user_id=user,
        team_id=team,
        expires_at=new.expires_at,
        csrf=new.csrf,
    )
    return new


def authenticate(db: Read, secret: str) -> identity.Principal:
    """The principal of a session's secret. Raises Unauthenticated."""
    row = db.sql.scalar(
        select(SessionRow).where(SessionRow.hash == hash_secret(secret), SessionRow.expires_at > db.now)
    )
    if row is None:
        raise Unauthenticated("You are signed out.", hint="Sign in again.")
    return identity.load_principal(db, row.user_id, row.team_id, csrf=row.csrf)


def close_session(db: Write, secret: str) -> None:
    """Sign a browser out. Again: no effect."""
    db.execute(delete(SessionRow).where(SessionRow.hash == hash_secret(secret)))

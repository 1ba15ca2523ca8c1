# SPDX-License-Identifier: Apache-2.0
"""Browser sessions, and the one-time login codes that open them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sqlalchemy import ColumnElement, bindparam, delete, or_, select, update

from shoestring_core.errors import Unauthenticated
from shoestring_core.store import identity
from shoestring_core.store.tables import KeyRow, SessionRow
from shoestring_core.store.tokens import hash_secret, is_well_formed
from shoestring_core.store.transactions import Read, Write

S = 1_000_000
LOGIN_CODE_TTL = 600 * S
SESSION_TTL = 14 * 86_400 * S
MAX_LOGIN_CODES = 20
"""Unused login codes of a member in a team."""
MAX_SESSIONS = 50
"""Browsers that a member is signed in with in a team."""


@dataclass(frozen=True)
class NewSession:
    """A new session: the cookie's secret, and the CSRF token that unsafe methods must send."""

    secret: str
    csrf: str
    expires_at: int


def create_login_code(db: Write, maker: identity.Principal) -> str:
    """A login code for a link: valid once, for ten minutes. Of more than MAX_LOGIN_CODES the oldest end."""
    identity.lock_member(db, maker)
    own = (KeyRow.user_id == maker.user, KeyRow.team_id == maker.team, KeyRow.kind == "login")
    db.execute(delete(KeyRow).where(*own, or_(KeyRow.revoked_at.is_not(None), ~_is_fresh(db))))
    newest = select(KeyRow.id).where(*own).order_by(KeyRow.created_at.desc(), KeyRow.id.desc())
    surplus = db.sql.scalars(newest.offset(MAX_LOGIN_CODES - 1)).all()
    db.execute(delete(KeyRow).where(KeyRow.id.in_(surplus)))
    return identity.insert_key(db, "login", maker, None)[1]


def redeem_login_code(db: Write, code: str) -> NewSession:
    """Open a session for a login code. Raises Unauthenticated if it was used, has expired or is unknown."""
    unused = (
        KeyRow.hash == hash_secret(code),
        KeyRow.kind == "login",
        KeyRow.revoked_at.is_(None),
        or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > db.now),
        _is_fresh(db),
    )
    found = db.sql.scalar(select(KeyRow).where(*unused)) if is_well_formed(code) else None
    if found is not None:
        maker = identity.load_principal(
            db, found.user_id, found.team_id, key=found.made_with, expires_at=found.expires_at
        )
        new = open_session(db, maker)
        if db.execute(update(KeyRow).where(*unused).values(revoked_at=db.now)) == 1:
            return new
    raise Unauthenticated(
        "This link was used already, or it is older than ten minutes.",
        hint="Sign in with an API key, or run `shoestring open` for a new link.",
    )


def open_session(db: Write, maker: identity.Principal) -> NewSession:
    """Sign a browser in as the maker, for no longer than the key that the maker signs in with is valid.

    Whoever has MAX_SESSIONS already is signed out where the session would end first.
    """
    identity.lock_member(db, maker)
    db.execute(delete(SessionRow).where(SessionRow.expires_at <= db.now))
    own = select(SessionRow.hash).where(SessionRow.user_id == maker.user, SessionRow.team_id == maker.team)
    surplus = db.sql.scalars(own.order_by(SessionRow.expires_at.desc()).offset(MAX_SESSIONS - 1)).all()
    db.execute(delete(SessionRow).where(SessionRow.hash.in_(surplus)))
    expires_at = identity.earliest(db.now + SESSION_TTL, maker.expires_at)
    assert expires_at is not None
    new = NewSession(secrets.token_urlsafe(32), secrets.token_urlsafe(24), expires_at)
    db.insert_new(
        SessionRow,
        hash=hash_secret(new.secret),
        user_id=maker.user,
        team_id=maker.team,
        made_with=maker.key,
        expires_at=new.expires_at,
        csrf=new.csrf,
    )
    return new


def authenticate(db: Read, secret: str) -> identity.Principal:
    """The principal of a session's secret. Raises Unauthenticated."""
    row = db.row(_SESSION, hash=hash_secret(secret))
    if row is None or row.expires_at <= db.now:
        raise Unauthenticated("You are signed out.", hint="Sign in again.")
    return identity.principal_of(row, key=row.made_with, expires_at=row.expires_at, csrf=row.csrf)


_SESSION = identity.with_member(SessionRow, SessionRow.made_with, SessionRow.expires_at, SessionRow.csrf).where(
    SessionRow.hash == bindparam("hash")
)


def close_session(db: Write, secret: str) -> None:
    """Sign a browser out. Again: no effect."""
    db.execute(delete(SessionRow).where(SessionRow.hash == hash_secret(secret)))


def _is_fresh(db: Read) -> ColumnElement[bool]:
    """Whether a login code's ten minutes are not over."""
    return KeyRow.created_at > db.now - LOGIN_CODE_TTL

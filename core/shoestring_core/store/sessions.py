# SPDX-License-Identifier: Apache-2.0
"""Browser sessions, and the one-time login codes that open them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, bindparam, delete, or_, select, update

from shoestring_core.errors import Forbidden, NotFound, Unauthenticated
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

MAX_BROWSER = 300
"""Characters of what a browser calls itself that are kept."""


@dataclass(frozen=True)
class NewSession:
    """A new session: the cookie's secret, and the CSRF token that unsafe methods must send."""

    secret: str
    csrf: str
    expires_at: int


@dataclass(frozen=True)
class Place:
    """Where a browser signs in from, and what it calls itself."""

    address: str = ""
    browser: str = ""


NOWHERE = Place()


def create_login_code(db: Write, maker: identity.Principal) -> str:
    """A login code for a link: valid once, for ten minutes. Of more than MAX_LOGIN_CODES the oldest end."""
    identity.lock_member(db, maker)
    own = (KeyRow.user_id == maker.user, KeyRow.team_id == maker.team, KeyRow.kind == "login")
    db.execute(delete(KeyRow).where(*own, or_(KeyRow.revoked_at.is_not(None), ~_is_fresh(db))))
    newest = select(KeyRow.id).where(*own).order_by(KeyRow.created_at.desc(), KeyRow.id.desc())
    surplus = db.sql.scalars(newest.offset(MAX_LOGIN_CODES - 1)).all()
    db.execute(delete(KeyRow).where(KeyRow.id.in_(surplus)))
    return identity.insert_key(db, "login", maker, None, scopes=maker.scopes)[1]


def redeem_login_code(db: Write, code: str, place: Place = NOWHERE) -> NewSession:
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
        scopes = identity.load_scopes(found.scopes)
        maker = identity.load_principal(
            db, found.user_id, found.team_id, key=found.made_with, expires_at=found.expires_at, scopes=scopes
        )
        new = open_session(db, maker, place)
        if db.execute(update(KeyRow).where(*unused).values(revoked_at=db.now)) == 1:
            return new
    raise Unauthenticated(
        "This link was used already, or it is older than ten minutes.",
        hint="Sign in with an API key, or run `shoestring open` for a new link.",
    )


def open_session(db: Write, maker: identity.Principal, place: Place = NOWHERE) -> NewSession:
    """Sign a browser in as the maker, for no longer than the key that the maker signs in with is valid, nor for more.

    A user who has MAX_SESSIONS already is signed out of the one that would end first. Raises Forbidden for a job key.
    """
    if maker.job is not None:
        raise Forbidden("A job key signs no browser in.", hint="Use a personal key: shoestring keys create.")
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
        scopes=identity.stored_scopes(maker.scopes),
        created_at=db.now,
        address=place.address,
        browser=place.browser[:MAX_BROWSER],
        expires_at=new.expires_at,
        csrf=new.csrf,
    )
    return new


def authenticate(db: Read, secret: str) -> identity.Principal:
    """The principal of a session's secret. Raises Unauthenticated."""
    row = db.row(_SESSION, hash=hash_secret(secret))
    if row is None or row.expires_at <= db.now:
        raise Unauthenticated("You are signed out.", hint="Sign in again.")
    scopes = identity.load_scopes(row.scopes)
    return identity.principal_of(row, key=row.made_with, expires_at=row.expires_at, csrf=row.csrf, scopes=scopes)


_SESSION = identity.with_member(
    SessionRow, SessionRow.made_with, SessionRow.expires_at, SessionRow.csrf, SessionRow.scopes
).where(SessionRow.hash == bindparam("hash"))


def close_session(db: Write, secret: str) -> None:
    """Sign a browser out. Again: no effect."""
    db.execute(delete(SessionRow).where(SessionRow.hash == hash_secret(secret)))


def load_sessions(db: Read, team: UUID, user: UUID) -> Sequence[SessionRow]:
    """Where a member is signed in now, the newest first."""
    own = (SessionRow.team_id == team, SessionRow.user_id == user, SessionRow.expires_at > db.now)
    return db.sql.scalars(select(SessionRow).where(*own).order_by(SessionRow.created_at.desc(), SessionRow.hash)).all()


def session_id(row: SessionRow) -> UUID:
    """What a session is called. Its secret can't be derived from it."""
    return UUID(row.hash[:32])


def end_session(db: Write, team: UUID, user: UUID, session: UUID) -> None:
    """Sign out one of a member's browsers. Raises NotFound."""
    for row in load_sessions(db, team, user):
        if session_id(row) == session:
            db.execute(delete(SessionRow).where(SessionRow.hash == row.hash))
            return
    raise NotFound("There is no such login.", hint="`shoestring keys logins` lists yours.")


def _is_fresh(db: Read) -> ColumnElement[bool]:
    """Whether a login code's ten minutes are not over."""
    return KeyRow.created_at > db.now - LOGIN_CODE_TTL

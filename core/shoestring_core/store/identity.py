# SPDX-License-Identifier: Apache-2.0
"""Who is asking: teams, users, keys, browser sessions, one-time codes, and answers kept for repeated requests.

A secret is `sst_<kind>_`, 30 random characters of base62 and their CRC-32 in 6 more, so that a mistyped key is known
without the database and a leaked one is found by scanners. Only the SHA-256 of a secret is stored.
"""

from __future__ import annotations

import hashlib
import secrets
import string
import zlib
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from sqlalchemy import delete, select, update

from shoestring_core.errors import (
    IdempotencyConflict,
    IdempotencyInFlight,
    InvalidRequest,
    NotFound,
    Unauthenticated,
)
from shoestring_core.store import ledger
from shoestring_core.store.db import Read, Write
from shoestring_core.store.ids import new_id
from shoestring_core.store.tables import IdempotencyRow, KeyRow, MembershipRow, SessionRow, TeamRow, UserRow

Kind = Literal["pat", "job", "svc", "login"]
Role = Literal["admin", "member"]

S = 1_000_000
LOGIN_CODE_LASTS = 600 * S
SESSION_LASTS = 14 * 86_400 * S
ANSWERS_LAST = 48 * 3_600 * S
IN_FLIGHT_LASTS = 60 * S
"""A request whose answer hasn't come by then has died with its process; its key may be used again."""


@dataclass(frozen=True)
class Principal:
    """Somebody who has shown who they are, acting in one team.

    key   the API key used; None in a browser's session
    csrf  what a browser must send along with unsafe methods; None with an API key
    """

    user: UUID
    user_name: str
    team: UUID
    team_name: str
    role: Role
    scopes: frozenset[str] = frozenset()
    key: UUID | None = None
    csrf: str | None = None

    @property
    def actor(self) -> str:
        """The name under which events record what this principal did."""
        return self.user_name


# Teams and users


def ensure_admin(db: Write, org: str, team: str, user: str) -> Principal:
    """A user who administers a team of an organisation; what doesn't exist yet is made."""
    return ensure_member(db, org, team, user, role="admin")


def ensure_member(db: Write, org: str, team: str, user: str, *, role: Role = "member") -> Principal:
    """A user in a team; what doesn't exist yet is made, with its accounts. An existing role stays."""
    db.insert_new(UserRow, id=new_id(), name=user, created_at=db.now)
    db.insert_new(TeamRow, id=new_id(), name=team, feed_seq=0)
    user_id = db.sql.execute(select(UserRow.id).where(UserRow.name == user)).scalar_one()
    team_id = db.sql.execute(select(TeamRow.id).where(TeamRow.name == team)).scalar_one()
    db.insert_new(MembershipRow, team_id=team_id, user_id=user_id, role=role)
    ledger.create_accounts(db, org, team_id, user_id)
    return _principal(db, user_id, team_id)


def user_names(db: Read, users: set[UUID]) -> dict[UUID, str]:
    return {row.id: row.name for row in db.sql.execute(select(UserRow.id, UserRow.name).where(UserRow.id.in_(users)))}


def team_name(db: Read, team: UUID) -> str:
    return db.sql.execute(select(TeamRow.name).where(TeamRow.id == team)).scalar_one()


# Keys


def create_key(
    db: Write, kind: Kind, user: UUID, team: UUID, scopes: list[str], expires_at: int | None
) -> tuple[KeyRow, str]:
    """A new key and its secret, which is shown once and stored nowhere. `expires_at` in µs UTC; None: never."""
    key_id, secret = new_id(), _secret(kind)
    db.insert_new(
        KeyRow,
        id=key_id,
        kind=kind,
        hash=_hash(secret),
        user_id=user,
        team_id=team,
        scopes=scopes,
        created_at=db.now,
        expires_at=expires_at,
        revoked_at=None,
    )
    return db.sql.get_one(KeyRow, key_id), secret


def revoke_key(db: Write, team: UUID, key: UUID) -> None:
    """End a key of the team, and what it may have opened: its owner's sign-in links and browsers are signed out too.

    Again: nothing. Raises NotFound.
    """
    owner = db.sql.scalar(select(KeyRow.user_id).where(KeyRow.id == key, KeyRow.team_id == team))
    if owner is None:
        raise NotFound("There is no such key.")
    if db.count(update(KeyRow).where(KeyRow.id == key, KeyRow.revoked_at.is_(None)).values(revoked_at=db.now)):
        links = (KeyRow.user_id == owner, KeyRow.team_id == team, KeyRow.kind == "login", KeyRow.revoked_at.is_(None))
        db.count(update(KeyRow).where(*links).values(revoked_at=db.now))
        db.count(delete(SessionRow).where(SessionRow.user_id == owner, SessionRow.team_id == team))


def authenticate(db: Read, secret: str) -> Principal:
    """Whose API key this is. Raises Unauthenticated, saying what is wrong with it."""
    if not _is_well_formed(secret):
        raise Unauthenticated(
            "This is not an API key, or it was mistyped.",
            hint="A key looks like sst_pat_ and 36 letters and digits; copy all of it.",
        )
    key = db.sql.scalar(select(KeyRow).where(KeyRow.hash == _hash(secret), KeyRow.kind != "login"))
    if key is None:
        raise Unauthenticated("This API key is not known here.", hint="Check which server it belongs to.")
    if key.revoked_at is not None:
        raise Unauthenticated("This API key was revoked.", hint="Ask an admin of your team for a new one.")
    if key.expires_at is not None and key.expires_at <= db.now:
        raise Unauthenticated("This API key has expired.", hint="Ask an admin of your team for a new one.")
    return _principal(db, key.user_id, key.team_id, scopes=frozenset(key.scopes), key=key.id)


# Browsers


@dataclass(frozen=True)
class SignedIn:
    """A browser's new session: the cookie's secret, and the token that unsafe methods must carry."""

    secret: str
    csrf: str
    expires_at: int


def create_login_code(db: Write, user: UUID, team: UUID) -> str:
    """The code of a printed link: good once, for ten minutes."""
    return create_key(db, "login", user, team, [], db.now + LOGIN_CODE_LASTS)[1]


def redeem_login_code(db: Write, code: str) -> SignedIn:
    """Sign a browser in by a one-time code. Raises Unauthenticated if it was used, has expired, or never was."""
    unused = (
        KeyRow.hash == _hash(code),
        KeyRow.kind == "login",
        KeyRow.revoked_at.is_(None),
        KeyRow.expires_at > db.now,
    )
    if not _is_well_formed(code) or db.count(update(KeyRow).where(*unused).values(revoked_at=db.now)) != 1:
        raise Unauthenticated(
            "This link was used already, or it is older than ten minutes.",
            hint="Sign in with an API key, or run `shoestring open` for a new link.",
        )
    key = db.sql.execute(select(KeyRow).where(KeyRow.hash == _hash(code))).scalar_one()
    return open_session(db, key.user_id, key.team_id)


def open_session(db: Write, user: UUID, team: UUID, key: UUID | None = None) -> SignedIn:
    """Sign a browser in, by a key for no longer than that lasts."""
    db.count(delete(SessionRow).where(SessionRow.expires_at <= db.now))
    ends = db.sql.scalar(select(KeyRow.expires_at).where(KeyRow.id == key))
    expires_at = min(db.now + SESSION_LASTS, ends or db.now + SESSION_LASTS)
    signed_in = SignedIn(secrets.token_urlsafe(32), secrets.token_urlsafe(24), expires_at)
    db.insert_new(
        SessionRow,
        hash=_hash(signed_in.secret),
        user_id=user,
        team_id=team,
        expires_at=signed_in.expires_at,
        csrf=signed_in.csrf,
    )
    return signed_in


def session(db: Read, secret: str) -> Principal:
    """Whose browser this is. Raises Unauthenticated."""
    found = db.sql.scalar(select(SessionRow).where(SessionRow.hash == _hash(secret), SessionRow.expires_at > db.now))
    if found is None:
        raise Unauthenticated("You are signed out.", hint="Sign in again.")
    return _principal(db, found.user_id, found.team_id, csrf=found.csrf)


def close_session(db: Write, secret: str) -> None:
    """Sign a browser out; again: nothing."""
    db.count(delete(SessionRow).where(SessionRow.hash == _hash(secret)))


# Repeated requests


@dataclass(frozen=True)
class Answer:
    """What the first request with a key was answered."""

    status: int
    body: str


def begin(db: Write, principal: str, key: str, body_sha: str) -> Answer | None:
    """Claim an Idempotency-Key. None: the request is the first, go on, and `finish` it. Else its first answer.

    principal  whose key it is: keys of different people never meet
    body_sha   hash of method, path and body
    Raises IdempotencyConflict for another request under the same key, IdempotencyInFlight while the first still runs.
    """
    if not 1 <= len(key) <= 200 or not key.isprintable():
        raise InvalidRequest("An Idempotency-Key has 1 to 200 printable characters.", hint="Use a fresh UUID.")
    row = (IdempotencyRow.principal == principal, IdempotencyRow.key == key)
    db.count(delete(IdempotencyRow).where(*row, IdempotencyRow.at < db.now - ANSWERS_LAST))
    if db.insert_new(
        IdempotencyRow, principal=principal, key=key, body_sha=body_sha, status=None, body=None, at=db.now
    ):
        return None
    first = db.sql.execute(select(IdempotencyRow).where(*row)).scalar_one()
    if first.body_sha != body_sha:
        raise IdempotencyConflict(
            "This Idempotency-Key was used with another request.", hint="Use a fresh key for each new request."
        )
    if first.status is not None:
        return Answer(first.status, first.body or "")
    stale = (
        IdempotencyRow.status.is_(None),
        IdempotencyRow.at == first.at,
        IdempotencyRow.at < db.now - IN_FLIGHT_LASTS,
    )
    if db.count(update(IdempotencyRow).where(*row, *stale).values(at=db.now)) == 1:
        return None
    raise IdempotencyInFlight(
        "The first request with this Idempotency-Key is still running.", hint="Repeat it shortly."
    )


def finish(db: Write, principal: str, key: str, status: int, body: str) -> None:
    """Keep the answer for those who repeat the request."""
    row = (IdempotencyRow.principal == principal, IdempotencyRow.key == key, IdempotencyRow.status.is_(None))
    db.count(update(IdempotencyRow).where(*row).values(status=status, body=body))


def forget(db: Write, principal: str, key: str) -> None:
    """Give the key free again: the request was refused before it did anything."""
    row = (IdempotencyRow.principal == principal, IdempotencyRow.key == key, IdempotencyRow.status.is_(None))
    db.count(delete(IdempotencyRow).where(*row))


# Secrets

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM, _CHECK = 30, 6


def _secret(kind: Kind) -> str:
    body = f"sst_{kind}_" + "".join(secrets.choice(_BASE62) for _ in range(_RANDOM))
    return body + _checksum(body)


def _is_well_formed(secret: str) -> bool:
    parts = secret.split("_")
    if len(parts) != 3 or parts[0] != "sst" or len(parts[2]) != _RANDOM + _CHECK or not secret.isascii():
        return False
    return _checksum(secret[:-_CHECK]) == secret[-_CHECK:]


def _checksum(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(_CHECK):
        number, digit = divmod(number, len(_BASE62))
        digits = _BASE62[digit] + digits
    return digits


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _principal(
    db: Read,
    user: UUID,
    team: UUID,
    *,
    scopes: frozenset[str] = frozenset(),
    key: UUID | None = None,
    csrf: str | None = None,
) -> Principal:
    row = db.sql.execute(
        select(UserRow.name.label("user"), TeamRow.name.label("team"), MembershipRow.role)
        .join(MembershipRow, MembershipRow.user_id == UserRow.id)
        .join(TeamRow, TeamRow.id == MembershipRow.team_id)
        .where(UserRow.id == user, TeamRow.id == team)
    ).one_or_none()
    if row is None:
        raise Unauthenticated("You are not a member of this team any more.", hint="Ask one of its admins.")
    return Principal(user, row.user, team, row.team, row.role, scopes, key, csrf)

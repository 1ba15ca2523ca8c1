# SPDX-License-Identifier: Apache-2.0
"""Identity: users, teams and their members, API keys, and the principal that a request acts as."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast
from uuid import UUID

from sqlalchemy import Row, Select, and_, bindparam, delete, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute

from shoestring_core import wording
from shoestring_core.decide.access import JOB_KEY_SCOPES, SCOPES, KeyKind, Role, Scope
from shoestring_core.errors import Forbidden, InvalidRequest, NotFound, TooMany, Unauthenticated
from shoestring_core.names import MAX_NAME, is_name
from shoestring_core.store import ledger
from shoestring_core.store.tables import JobRow, KeyRow, MembershipRow, SessionRow, TeamRow, UserRow
from shoestring_core.store.tokens import SecretKind, generate_secret, hash_secret, is_well_formed
from shoestring_core.store.transactions import Read, Write
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording import people

Columns: TypeAlias = Select[*tuple[Any, ...]]

MAX_KEYS = 50
"""Valid API keys of a member in a team."""

USE_NOTED_EVERY = 600 * 1_000_000
"""µs: a key's last use is stored this exactly."""


@dataclass(frozen=True)
class Principal:
    """An authenticated user, acting in one team.

    key         the API key used, or the one that the browser's session was opened with
    expires_at  when that key or session ends; nothing that it makes ends later. None: never
    csrf        the token that a browser must send with unsafe methods; None with an API key
    scopes      what that key or session may do; nothing that it makes may do more. None: all that its user may
    job         the only job that a job key reaches
    address     the host that the request came from
    """

    user: UUID
    user_name: str
    team: UUID
    team_name: str
    role: Role
    key: UUID | None = None
    expires_at: int | None = None
    csrf: str | None = None
    scopes: frozenset[Scope] | None = None
    job: UUID | None = None
    address: str = field(default="", compare=False)

    @property
    def credential(self) -> str:
        """How it is authenticated, for the audit log."""
        kind = "key" if self.csrf is None else "login with key"
        return f"{kind} {self.key}" if self.key else kind.removesuffix(" with key")

    @property
    def actor(self) -> str:
        """The name under which events record what this principal did."""
        return self.user_name


# Teams and users


def ensure_admin(db: Write, org: str, team: str, user: str) -> Principal:
    """An admin of a team of an organization. Whatever is missing is created."""
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


def create_key(
    db: Write,
    kind: KeyKind,
    maker: Principal,
    expires_at: int | None,
    *,
    name: str = "",
    scopes: Collection[Scope] | None = None,
    job: UUID | None = None,
) -> tuple[KeyRow, str]:
    """Create a key of the maker's; returns it and its secret, which is stored nowhere.

    `expires_at` in µs UTC; None: never. It ends with what the maker is authenticated by, if that ends earlier. None as
    `scopes`: those of the maker. `job`: of a job key, and of no other. Raises TooMany; Forbidden for scopes that the
    maker lacks; InvalidRequest for a job key without an end, or a name that can't be one; NotFound for a job that the
    team doesn't have.
    """
    lock_member(db, maker)
    if name and not is_name(name):
        raise InvalidRequest(wording.sentence(people.OddName(MAX_NAME)))
    valid = (KeyRow.revoked_at.is_(None), or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > db.now))
    own = (KeyRow.user_id == maker.user, KeyRow.team_id == maker.team, KeyRow.kind != "login")
    if (db.sql.scalar(select(func.count()).where(*own, *valid)) or 0) >= MAX_KEYS:
        raise TooMany(
            f"You have {MAX_KEYS} API keys in this team, the most that one person may have.",
            hint="Revoke one that is no longer used: shoestring keys revoke ID.",
        )
    granted = _granted(maker, JOB_KEY_SCOPES if kind == "job" and scopes is None else scopes)
    if kind == "job":
        _check_job_key(db, maker, granted, job, expires_at)
    elif job is not None:
        raise InvalidRequest("Only a job key names a job.", hint="Leave the job out, or make a key of kind job.")
    return insert_key(db, kind, maker, expires_at, name=name, scopes=granted, job=job)


def _granted(maker: Principal, scopes: Collection[Scope] | None) -> frozenset[Scope] | None:
    if scopes is None or maker.scopes is None:
        return maker.scopes if scopes is None else frozenset(scopes)
    if lacking := frozenset(scopes) - maker.scopes:
        raise Forbidden(
            f"This key may not give scopes that it lacks: {', '.join(sorted(lacking))}.",
            hint="Name scopes that it has, or use a key that has them.",
        )
    return frozenset(scopes)


def _check_job_key(
    db: Read, maker: Principal, scopes: frozenset[Scope] | None, job: UUID | None, expires_at: int | None
) -> None:
    if job is None or expires_at is None:
        raise InvalidRequest("A job key names its job and ends some day.", hint="Give the job, and in how many days.")
    if scopes is None or not scopes <= JOB_KEY_SCOPES:
        raise InvalidRequest("A job key reads its job and stops it, nothing else.", hint="Scopes: read, jobs.")
    if db.sql.scalar(select(JobRow.id).where(JobRow.id == job, JobRow.team_id == maker.team)) is None:
        raise NotFound("There is no such job.", hint="`shoestring ls` lists the jobs of your team.")


def insert_key(
    db: Write,
    kind: SecretKind,
    maker: Principal,
    expires_at: int | None,
    *,
    name: str = "",
    scopes: frozenset[Scope] | None,
    job: UUID | None = None,
) -> tuple[KeyRow, str]:
    """Store a new key, or login code, of the maker's that doesn't outlive what the maker is authenticated by."""
    key_id, secret = uuid7(), generate_secret(kind)
    db.insert_new(
        KeyRow,
        id=key_id,
        kind=kind,
        hash=hash_secret(secret),
        user_id=maker.user,
        team_id=maker.team,
        name=name,
        scopes=stored_scopes(scopes),
        job=job,
        created_at=db.now,
        made_with=maker.key,
        expires_at=earliest(expires_at, maker.expires_at),
        revoked_at=None,
    )
    return db.sql.get_one(KeyRow, key_id), secret


def stored_scopes(scopes: frozenset[Scope] | None) -> str | None:
    return None if scopes is None else " ".join(scope for scope in SCOPES if scope in scopes)


def load_scopes(stored: str | None) -> frozenset[Scope] | None:
    return None if stored is None else cast("frozenset[Scope]", frozenset(stored.split()))


def lock_member(db: Write, maker: Principal) -> None:
    """Let nobody else count or make the maker's keys and sessions before the commit, nor revoke the key behind them.

    Raises Unauthenticated if that key was revoked meanwhile.
    """
    db.execute(update(UserRow).where(UserRow.id == maker.user).values(name=UserRow.name))
    valid = update(KeyRow).where(KeyRow.id == maker.key, KeyRow.revoked_at.is_(None)).values(revoked_at=None)
    if maker.key is not None and not db.execute(valid):
        raise _revoked()


def earliest(*times: int | None) -> int | None:
    return min((time for time in times if time is not None), default=None)


def revoke_key(db: Write, team: UUID, key: UUID) -> None:
    """Revoke a key of the team, and with it all keys, login codes and browser sessions that were made with it.

    Again: no effect. Raises NotFound.
    """
    if db.sql.scalar(select(KeyRow.id).where(KeyRow.id == key, KeyRow.team_id == team)) is None:
        raise no_such_key()
    revoked = [key]
    while revoked:
        db.execute(update(KeyRow).where(KeyRow.id.in_(revoked), KeyRow.revoked_at.is_(None)).values(revoked_at=db.now))
        db.execute(delete(SessionRow).where(SessionRow.made_with.in_(revoked)))
        revoked = list(db.sql.scalars(select(KeyRow.id).where(KeyRow.made_with.in_(revoked))))


def no_such_key() -> NotFound:
    return NotFound("There is no such key.", hint="`shoestring keys ls` lists yours.")


def authenticate(db: Read, secret: str) -> Principal:
    """The principal of an API key. Raises Unauthenticated, which names the problem."""
    if not is_well_formed(secret):
        raise Unauthenticated(
            "This is not an API key, or it was mistyped.",
            hint="A key looks like sst_pat_ and 36 letters and digits; copy all of it.",
        )
    key = db.row(_KEY, hash=hash_secret(secret))
    if key is None:
        raise Unauthenticated("Unknown API key.", hint="Check that it was issued by this service.")
    if key.revoked_at is not None:
        raise _revoked()
    if key.expires_at is not None and key.expires_at <= db.now:
        raise Unauthenticated("This API key has expired.", hint="Ask an admin of your team for a new one.")
    return principal_of(key, key=key.id, expires_at=key.expires_at, scopes=load_scopes(key.scopes), job=key.job)


def record_use(db: Write, key: UUID) -> None:
    """A request was made with the key just now."""
    noted_long_ago = or_(KeyRow.last_used_at.is_(None), KeyRow.last_used_at <= db.now - USE_NOTED_EVERY)
    db.execute(update(KeyRow).where(KeyRow.id == key, noted_long_ago).values(last_used_at=db.now))


def load_principal(
    db: Read,
    user: UUID,
    team: UUID,
    *,
    key: UUID | None = None,
    expires_at: int | None = None,
    scopes: frozenset[Scope] | None = None,
) -> Principal:
    """The principal of a user acting in a team. Raises Unauthenticated if they are no member any more."""
    row = db.row(_MEMBER, user=user, team=team)
    if row is None:
        raise _no_member()
    return principal_of(row, key=key, expires_at=expires_at, scopes=scopes)


def principal_of(
    row: Row[*tuple[Any, ...]],
    *,
    key: UUID | None,
    expires_at: int | None = None,
    csrf: str | None = None,
    scopes: frozenset[Scope] | None = None,
    job: UUID | None = None,
) -> Principal:
    """The principal of a row with MEMBER_COLUMNS. Raises Unauthenticated if they are no member any more."""
    if row.role is None:
        raise _no_member()
    return Principal(
        row.user_id, row.user_name, row.team_id, row.team_name, row.role, key, expires_at, csrf, scopes, job
    )


MEMBER_COLUMNS = (
    UserRow.id.label("user_id"),
    UserRow.name.label("user_name"),
    TeamRow.id.label("team_id"),
    TeamRow.name.label("team_name"),
    MembershipRow.role,
)


def with_member(row: type[KeyRow] | type[SessionRow], *columns: InstrumentedAttribute[Any]) -> Columns:
    """Columns of a key or session, and MEMBER_COLUMNS of whom it belongs to; without membership the role is NULL."""
    same = (MembershipRow.user_id == row.user_id, MembershipRow.team_id == row.team_id)
    query = select(*columns, *MEMBER_COLUMNS).join_from(row, UserRow, UserRow.id == row.user_id)
    return query.join(TeamRow, TeamRow.id == row.team_id).outerjoin(MembershipRow, and_(*same))


_KEY = with_member(KeyRow, KeyRow.id, KeyRow.revoked_at, KeyRow.expires_at, KeyRow.scopes, KeyRow.job).where(
    KeyRow.hash == bindparam("hash"), KeyRow.kind != "login"
)
_MEMBER = (
    select(*MEMBER_COLUMNS)
    .join_from(MembershipRow, UserRow, UserRow.id == MembershipRow.user_id)
    .join(TeamRow, TeamRow.id == MembershipRow.team_id)
    .where(MembershipRow.user_id == bindparam("user"), MembershipRow.team_id == bindparam("team"))
)


def _no_member() -> Unauthenticated:
    return Unauthenticated("You are no longer a member of this team.", hint="Ask one of its admins.")


def _revoked() -> Unauthenticated:
    return Unauthenticated("This API key was revoked.", hint="Ask an admin of your team for a new one.")

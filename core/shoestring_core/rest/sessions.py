# SPDX-License-Identifier: Apache-2.0
"""API keys and logins."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

from shoestring_core.decide.access import KeyKind, Role, Scope
from shoestring_core.rest.base import RequestBody, Resource


class LoginRequest(RequestBody):
    """Body of POST /v1/session: an API key, or the code of a one-time login link."""

    key: str | None = Field(default=None, max_length=200)
    code: str | None = Field(default=None, max_length=200)


class Me(Resource):
    user: str
    team: str
    role: Role
    scopes: list[Scope] | None = None
    """What this key, or the browser that it signed in, may do of what the role allows; None: all of it."""
    csrf: str | None = None
    """Send as X-CSRF-Token on unsafe methods when signed in by cookie."""
    version: str
    cursor: str
    """Position in the event feed: a stream opened with this cursor misses nothing that is read from now on."""


class Key(Resource):
    """An API key, without its secret."""

    id: UUID
    kind: KeyKind
    name: str = ""
    scopes: list[Scope] | None = None
    """None: all."""
    job: UUID | None = None
    """Of a job key: the only job that it reaches."""
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    """When a request was last made with it, to within ten minutes. None: never."""


class KeyList(Resource):
    keys: list[Key]


class CreateKeyRequest(RequestBody):
    """Body of POST /v1/keys.

    scopes  None: those of the key that makes it; of a job key: read and jobs
    job     of a job key, and of no other
    """

    kind: KeyKind = "pat"
    name: str = Field(default="", max_length=100)
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=20)] | None = None
    job: UUID | None = Field(default=None, strict=False)
    expires_in_days: int | None = Field(default=90, ge=1, le=3650)


class CreatedKey(Resource):
    """A new API key. The secret is returned only here."""

    key: Key
    secret: str


class LoginCode(Resource):
    code: str
    """Valid once, for ten minutes, at `/login?code=…`."""


class Login(Resource):
    """A browser that is signed in."""

    id: UUID
    created_at: datetime
    expires_at: datetime
    address: str
    """Where it signed in from."""
    browser: str
    """What it calls itself."""
    current: bool
    """It is the one that asks."""


class LoginList(Resource):
    logins: list[Login]

# SPDX-License-Identifier: Apache-2.0
"""Who is asking: sign-in, sign-out, API keys."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Request, Response
from shoestring_core import rest
from shoestring_core.errors import InvalidRequest, NotFound
from shoestring_core.store import identity, rows, sessions
from shoestring_core.store.db import Write
from shoestring_core.store.identity import Principal

from shoestring_api import VERSION, dashboard, views
from shoestring_api.bodies import ExactRoute
from shoestring_api.service import Caller, Here, Reading, Service, cookie_name

router = APIRouter(tags=["people"], route_class=ExactRoute)

DAY_US = 86_400_000_000


@router.get("/v1/me")
def me(caller: Caller) -> rest.Me:
    """The caller."""
    return _me(caller)


@router.post("/v1/session")
def sign_in(body: rest.Login, service: Here, request: Request, response: Response) -> rest.Me:
    """Sign a browser in by an API key or a one-time code: sets a same-site cookie."""
    if (body.key is None) == (body.code is None):
        raise InvalidRequest("Give either `key` or `code`.")

    def work(db: Write) -> tuple[sessions.NewSession, Principal]:
        if body.key is not None:
            principal = identity.authenticate(db, body.key.strip())
            signed_in = sessions.open_session(db, principal.user, principal.team, principal.key)
        else:
            signed_in = sessions.redeem_login_code(db, body.code or "")
        return signed_in, sessions.authenticate(db, signed_in.secret)

    signed_in, principal = service.store.write(work)
    _set_cookie(service, request, response, signed_in)
    return _me(principal)


@router.delete("/v1/session", status_code=204)
def sign_out(service: Here, caller: Caller, request: Request, response: Response) -> None:
    """End the browser's session."""
    name = cookie_name(service.settings)
    if caller.csrf is not None and (secret := request.cookies.get(name)):
        service.store.write(lambda db: sessions.close_session(db, secret))
    response.delete_cookie(name, path="/")


@router.get("/login", include_in_schema=False)
def login() -> Response:
    """The dashboard's page, which redeems a one-time link itself: merely fetching the link uses nothing up."""
    return dashboard.page()


@router.post("/v1/login-codes", status_code=201)
def create_login_code(service: Here, caller: Caller) -> rest.LoginCode:
    """A code that signs one browser in as the caller, once, within ten minutes: `/login?code=…`."""
    return rest.LoginCode(code=service.store.write(lambda db: sessions.create_login_code(db, caller.user, caller.team)))


@router.get("/v1/keys")
def keys(db: Reading, caller: Caller) -> rest.KeyList:
    """The caller's API keys."""
    return rest.KeyList(keys=[views.key(row) for row in rows.keys(db, caller.team, caller.user)])


@router.post("/v1/keys", status_code=201)
def create_key(body: rest.NewKey, service: Here, caller: Caller) -> rest.CreatedKey:
    """Make an API key. Its secret is shown this once."""

    def work(db: Write) -> rest.CreatedKey:
        expires_at = None if body.expires_in_days is None else db.now + body.expires_in_days * DAY_US
        key, secret = identity.create_key(db, body.kind, caller.user, caller.team, [], expires_at)
        return rest.CreatedKey(key=views.key(key), secret=secret)

    return service.store.write(work)


@router.delete("/v1/keys/{key_id}", status_code=204)
def revoke_key(key_id: UUID, service: Here, caller: Caller) -> None:
    """Revoke an API key of one's own; an admin, any of the team's."""

    def work(db: Write) -> None:
        mine = {row.id for row in rows.keys(db, caller.team, caller.user)}
        if caller.role != "admin" and key_id not in mine:
            raise NotFound("There is no such key.")
        identity.revoke_key(db, caller.team, key_id)

    service.store.write(work)


def _me(principal: Principal) -> rest.Me:
    return rest.Me(
        user=principal.user_name,
        team=principal.team_name,
        role=principal.role,
        csrf=principal.csrf,
        version=VERSION,
    )


def _set_cookie(service: Service, request: Request, response: Response, signed_in: sessions.NewSession) -> None:
    response.set_cookie(
        cookie_name(service.settings),
        signed_in.secret,
        max_age=sessions.SESSION_TTL // 1_000_000,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )

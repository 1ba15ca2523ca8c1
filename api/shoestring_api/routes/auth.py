# SPDX-License-Identifier: Apache-2.0
"""Authentication: sign-in, sign-out, API keys."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from fastapi import APIRouter, Request, Response
from shoestring_core import rest
from shoestring_core.errors import InvalidRequest
from shoestring_core.store import audit, events, identity, queries, sessions
from shoestring_core.store.identity import Principal
from shoestring_core.store.tokens import hash_secret
from shoestring_core.store.transactions import Read, Write

from shoestring_api import VERSION, dashboard
from shoestring_api.app_state import AppState
from shoestring_api.dependencies import Caller, ReadDep, StateDep, address_of, cookie_name
from shoestring_api.json_body import ExactJsonRoute
from shoestring_api.serializers.keys import listed_scopes, serialize_key
from shoestring_api.serializers.times import to_datetime

router = APIRouter(tags=["auth"], route_class=ExactJsonRoute)

DAY_US = 86_400_000_000


@router.get("/v1/me")
def get_me(caller: Caller, db: ReadDep) -> rest.Me:
    """Return the caller."""
    return serialize_me(db, caller)


@router.post("/v1/session")
def sign_in(body: rest.LoginRequest, state: StateDep, request: Request, response: Response) -> rest.Me:
    """Sign a browser in with an API key or a one-time code: sets a same-site session cookie."""
    if (body.key is None) == (body.code is None):
        raise InvalidRequest("Send either `key` or `code`.")

    place = place_of(request)

    def work(db: Write) -> tuple[sessions.NewSession, rest.Me]:
        if body.key is not None:
            principal = identity.authenticate(db, body.key.strip())
            signed_in = sessions.open_session(db, principal, place)
        else:
            signed_in = sessions.redeem_login_code(db, body.code or "", place)
        signed = replace(sessions.authenticate(db, signed_in.secret), address=place.address)
        audit.record(db, signed, "sign_in", f"browser {place.browser}")
        return signed_in, serialize_me(db, signed)

    signed_in, me = state.store.write(work)
    set_session_cookie(state, request, response, signed_in)
    return me


@router.delete("/v1/session", status_code=204)
def sign_out(state: StateDep, caller: Caller, request: Request, response: Response) -> None:
    """End the browser's session."""
    name = cookie_name(state.settings)
    if caller.csrf is not None and (secret := request.cookies.get(name)):

        def work(db: Write) -> None:
            sessions.close_session(db, secret)
            audit.record(db, caller, "sign_out", "the browser that was signed in")

        state.store.write(work)
    response.delete_cookie(name, path="/", secure=state.settings.on_https())


@router.get("/login", include_in_schema=False)
def login_page() -> Response:
    """Return the dashboard, which redeems a one-time link itself: fetching the link alone does not use it up."""
    return dashboard.index_page()


@router.post("/v1/login-codes", status_code=201)
def create_login_code(state: StateDep, caller: Caller) -> rest.LoginCode:
    """Create a code that signs in as the caller, once, within ten minutes, at `/login?code=…`."""

    def work(db: Write) -> str:
        audit.record(db, caller, "create_login_code", audit.subject("member", caller.user_name, caller.user))
        return sessions.create_login_code(db, caller)

    return rest.LoginCode(code=state.store.write(work))


@router.get("/v1/keys")
def list_keys(db: ReadDep, caller: Caller) -> rest.KeyList:
    """List the caller's API keys."""
    return rest.KeyList(keys=[serialize_key(row) for row in queries.load_keys(db, caller.team, caller.user)])


@router.post("/v1/keys", status_code=201)
def create_key(body: rest.CreateKeyRequest, state: StateDep, caller: Caller) -> rest.CreatedKey:
    """Create an API key; it ends no later than what makes it, and may do no more. Its secret is returned only once."""

    def work(db: Write) -> rest.CreatedKey:
        expires_at = None if body.expires_in_days is None else db.now + body.expires_in_days * DAY_US
        key, secret = identity.create_key(
            db, body.kind, caller, expires_at, name=body.name, scopes=body.scopes, job=body.job
        )
        audit.record(
            db, caller, "create_key", audit.subject("key", key.name, key.id), kind=key.kind, scopes=key.scopes,
            job=key.job and str(key.job), expires_at=key.expires_at,
        )  # fmt: skip
        return rest.CreatedKey(key=serialize_key(key), secret=secret)

    return state.store.write(work)


@router.delete("/v1/keys/{key_id}", status_code=204)
def revoke_key(key_id: UUID, state: StateDep, caller: Caller) -> None:
    """Revoke an API key of the caller, and every key and session made with it; an admin may revoke any of the team."""

    def work(db: Write) -> None:
        own_keys = {row.id for row in queries.load_keys(db, caller.team, caller.user)}
        if caller.role != "admin" and key_id not in own_keys:
            raise identity.no_such_key()
        identity.revoke_key(db, caller.team, key_id)
        audit.record(db, caller, "revoke_key", f"key {key_id}")

    state.store.write(work)


@router.get("/v1/sessions")
def list_sessions(db: ReadDep, caller: Caller, request: Request, state: StateDep) -> rest.LoginList:
    """List the browsers that the caller is signed in with."""
    current = None if caller.csrf is None else hash_secret(request.cookies[cookie_name(state.settings)])
    found = sessions.load_sessions(db, caller.team, caller.user)
    return rest.LoginList(
        logins=[
            rest.Login(
                id=sessions.session_id(row),
                created_at=to_datetime(row.created_at),
                expires_at=to_datetime(row.expires_at),
                address=row.address,
                browser=row.browser,
                current=row.hash == current,
            )
            for row in found
        ]
    )


@router.delete("/v1/sessions/{session_id}", status_code=204)
def end_session(session_id: UUID, state: StateDep, caller: Caller) -> None:
    """Sign out a browser of the caller's."""

    def work(db: Write) -> None:
        sessions.end_session(db, caller.team, caller.user, session_id)
        audit.record(db, caller, "end_session", f"login {session_id}")

    state.store.write(work)


def place_of(request: Request) -> sessions.Place:
    return sessions.Place(address_of(request), request.headers.get("user-agent", ""))


def serialize_me(db: Read, principal: Principal) -> rest.Me:
    return rest.Me(
        user=principal.user_name,
        team=principal.team_name,
        role=principal.role,
        scopes=listed_scopes(principal.scopes),
        csrf=principal.csrf,
        version=VERSION,
        cursor=events.to_cursor(principal.team, events.latest_seq(db, principal.team)),
    )


def set_session_cookie(state: AppState, request: Request, response: Response, signed_in: sessions.NewSession) -> None:
    response.set_cookie(
        cookie_name(state.settings),
        signed_in.secret,
        max_age=sessions.SESSION_TTL // 1_000_000,
        path="/",
        secure=request.url.scheme == "https" or state.settings.on_https(),
        httponly=True,
        samesite="strict",
    )

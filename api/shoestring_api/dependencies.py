# SPDX-License-Identifier: Apache-2.0
"""FastAPI dependencies of the routes: the app's state, a read transaction, the authenticated caller."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header, Query, Request
from fastapi.dependencies.models import Dependant
from shoestring_core.decide import access
from shoestring_core.errors import Forbidden, InvalidRequest, Unauthenticated
from shoestring_core.store import identity, jobs, sessions
from shoestring_core.store.identity import Principal
from shoestring_core.store.transactions import Read

from shoestring_api import problems
from shoestring_api.app_state import AppState
from shoestring_api.settings import ApiSettings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


async def _get_state(request: Request) -> AppState:  # a function without `async` costs a hop to a thread
    state: AppState = request.app.state.app_state
    return state


StateDep = Annotated[AppState, Depends(_get_state)]


def _open_read(state: StateDep) -> Iterator[Read]:
    with state.store.read() as db:
        yield db


ReadDep = Annotated[Read, Depends(_open_read, scope="function")]


def authenticate(request: Request, state: StateDep) -> Principal:
    """Return the caller, identified by API key or else by the browser's session cookie, who may do the operation.

    Raises Unauthenticated; Forbidden if a cookie-authenticated write lacks its CSRF token, or the caller's role or the
    key's scopes don't reach; NotFound if a job key asks for another job.
    """
    caller = replace(_identify(request, state), address=address_of(request))
    refused = access.refusal(request.scope["route"].name, caller.role, caller.scopes, job_key=caller.job is not None)
    if refused is not None:
        raise _forbidden(request.scope["route"].name, refused, caller)
    if caller.job is not None and not _names_job(request.path_params.get("job_id"), caller.job):
        raise jobs.no_such_job()
    return caller


def address_of(request: Request) -> str:
    """The host that a request comes from."""
    return request.client.host if request.client else ""


def _identify(request: Request, state: AppState) -> Principal:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        return _signed_in(request, state)
    if scheme.lower() != "bearer":
        raise Unauthenticated(
            "The Authorization header does not use the Bearer scheme.", hint="Send `Authorization: Bearer KEY`."
        )
    with state.store.read(snapshot=False) as db:
        principal = identity.authenticate(db, secret.strip())
    assert principal.key is not None
    state.key_uses.note(state.store, principal.key)
    return principal


def _signed_in(request: Request, state: AppState) -> Principal:
    """The caller of a browser's session."""
    cookie = request.cookies.get(cookie_name(state.settings))
    if not cookie:
        raise Unauthenticated("No API key was sent.", hint="Send `Authorization: Bearer KEY`, or sign in at /login.")
    with state.store.read(snapshot=False) as db:
        principal = sessions.authenticate(db, cookie)
    if request.method not in SAFE_METHODS and request.headers.get("x-csrf-token") != principal.csrf:
        raise Forbidden("The X-CSRF-Token header is missing or wrong.", hint="Send the csrf value of GET /v1/me.")
    return principal


def _forbidden(operation: str, refused: access.Refusal, caller: Principal) -> Forbidden:
    rule = access.RULES[operation]
    if refused == "job_key":
        return Forbidden("A job key reads its job and stops it, nothing else.", hint="Use a personal or service key.")
    if refused == "scope":
        return Forbidden(
            f"This key may not do this: it lacks the scope {rule.scope}.",
            hint=f"Make one that has it: shoestring keys create --scope {rule.scope}",
        )
    return too_low(caller, rule.role)


def too_low(caller: Principal, least: access.Role) -> Forbidden:
    """The error for a caller whose role doesn't reach."""
    who = "an admin" if least == "admin" else f"a {least}"
    also = " or an admin" if least == "lead" else ""
    needed = f"Only {who}{also} of the team may do this" if also or least == "admin" else "A viewer may only look"
    return Forbidden(f"{needed}.", hint=f"Ask an admin of team {caller.team_name}.")


def own_budget() -> Forbidden:
    """The error for a lead who would give dollars to their own budget."""
    return Forbidden(
        "A lead gives no dollars to their own budget.",
        hint="Ask for them: shoestring budget request. Another lead or an admin approves it.",
    )


def _names_job(given: str | None, job: UUID) -> bool:
    """Whether a path names the job, or none at all, or is malformed, which is refused as for everybody."""
    try:
        return given is None or UUID(given) == job
    except ValueError:
        return True


Caller = Annotated[Principal, Depends(authenticate)]

IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]

Cursor = Annotated[str | None, Query(max_length=20_000)]


def cookie_name(settings: ApiSettings) -> str:
    """Include the port, because browsers share cookies between the ports of a host, such as several local services.

    Browsers accept a __Host- cookie from the host itself over https alone, so that no other host or plain-text page can
    set one.
    """
    return f"{'__Host-' if settings.on_https() else ''}shoestring_{settings.port}"


async def reject_unknown_query_parameters(request: Request) -> None:
    """Raise InvalidRequest for a query parameter that a /v1 route doesn't have, such as a misspelt filter."""
    route = request.scope.get("route")  # None for the dashboard's fallback page
    if not request.scope["query_string"] or route is None or not request.url.path.startswith("/v1/"):
        return
    known = sorted(_query_parameters(route.dependant))
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(f"Unknown query parameter {name[:60]!r}.", hint=problems.suggest_name(name, known))


def _query_parameters(dependant: Dependant) -> Iterator[str]:
    yield from (parameter.alias for parameter in dependant.query_params)
    for nested in dependant.dependencies:
        yield from _query_parameters(nested)

# SPDX-License-Identifier: Apache-2.0
"""The parts of one running API process, and how routes get at them and at who is asking."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Header, Request, Response
from shoestring_core import rest
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.errors import Forbidden, Unauthenticated, Unavailable
from shoestring_core.store import idempotency, identity, sessions
from shoestring_core.store.db import Read, Store, Write, open_store
from shoestring_core.store.fleet import services
from shoestring_core.store.groupcommit import GroupCommit
from shoestring_core.store.identity import Principal
from shoestring_core.store.objects import Objects, open_objects

from shoestring_api.feeds import Feeds
from shoestring_api.hints import Hints
from shoestring_api.settings import Settings
from shoestring_api.wake import Wake

log = logging.getLogger(__name__)

BEAT_S = 5.0
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass
class Service:
    settings: Settings
    store: Store
    reports: GroupCommit
    """Writes of machines' reports: many, small, and alike."""
    objects: Objects
    wake: Wake
    hints: Hints | None
    feeds: Feeds
    timeouts: Timeouts
    secret: str = field(repr=False)

    @classmethod
    def open(cls, settings: Settings) -> Service:
        """Raises ValueError without a secret; Unavailable if the database can't be reached or isn't of this version."""
        secret = settings.server_secret()
        store = open_store(settings.database_url)
        if not store.is_current():
            raise Unavailable(
                "The database's schema is older than this version of Shoestring.",
                hint="Upgrade it: python -m shoestring_api.admin bootstrap --key-file FILE",
            )
        wake = Wake(settings.redis_url)
        timeouts = Timeouts(
            funding_lease=int(settings.funding_lease_s * S),
            drain=int(settings.t_drain_s * S),
            machine_lease=int(settings.lease_s * S),
        )
        hints = Hints(settings.redis_url) if settings.redis_url else None
        store.on_commit.append(wake.committed)
        if hints is not None:
            store.on_commit.append(hints.committed)
        objects = open_objects(settings.objects, secret, settings.agents_call())
        return cls(settings, store, GroupCommit(store), objects, wake, hints, Feeds(store, wake), timeouts, secret)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While it serves: hears and sends wake-ups, and says in the database that it is there."""
        await self.wake.start()
        if self.hints is not None:
            self.hints.start()
        beat = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            beat.cancel()
            await self.wake.stop()
            await self.feeds.close()
            if self.hints is not None:
                await asyncio.to_thread(self.hints.stop)
            self.store.close()

    async def _beat(self) -> None:
        """Agents' leases count only while we could hear them."""
        gap = self.timeouts.machine_lease // 2
        while True:
            try:
                await asyncio.to_thread(self.store.write, lambda db: services.seen(db, "api", gap))
            except Unavailable as error:
                log.warning("the heartbeat could not be written: %s", error)
            await asyncio.sleep(BEAT_S)


# --- for routes -------------------------------------------------------------------------------------------


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Here = Annotated[Service, Depends(_service)]


def _read(service: Here) -> Iterator[Read]:
    with service.store.read() as db:
        yield db


Reading = Annotated[Read, Depends(_read, scope="function")]


def cookie_name(settings: Settings) -> str:
    """With the port in it, because cookies don't tell ports apart and people run several services on localhost."""
    return f"shoestring_{settings.port}"


def caller(request: Request, service: Here) -> Principal:
    """Who is asking: by API key, else by the browser's cookie."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    with service.store.read() as db:
        if scheme:
            if scheme.lower() != "bearer":
                raise Unauthenticated("The Authorization header is not `Bearer KEY`.", hint="Send your API key so.")
            return identity.authenticate(db, secret.strip())
        cookie = request.cookies.get(cookie_name(service.settings))
        if not cookie:
            raise Unauthenticated(
                "No API key was sent.", hint="Send `Authorization: Bearer KEY`, or sign in at /login."
            )
        principal = sessions.authenticate(db, cookie)
    if request.method not in SAFE_METHODS and request.headers.get("x-csrf-token") != principal.csrf:
        raise Forbidden("The X-CSRF-Token header is missing or wrong.", hint="Send the csrf value of GET /v1/me.")
    return principal


Caller = Annotated[Principal, Depends(caller)]


def _admin(asking: Caller) -> Principal:
    if asking.role != "admin":
        raise Forbidden("Only an admin of the team may do this.", hint=f"Ask an admin of team {asking.team_name}.")
    return asking


Admin = Annotated[Principal, Depends(_admin)]

IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]


def once(
    service: Service, caller: Principal, key: str | None, request: str, status: int, work: Callable[[Write], rest.Job]
) -> Response:
    """Do `work` in one transaction, and at most once for an Idempotency-Key: the first answer is given again.

    request   what is asked, in words: another request under the same key is refused
    """
    principal, sha = f"{caller.team}:{caller.user}", hashlib.sha256(request.encode()).hexdigest()

    def attempt(db: Write) -> tuple[int, str, bool]:
        if key is not None and (first := idempotency.begin_request(db, principal, key, sha)) is not None:
            return first.status, first.body, True
        body = work(db).model_dump_json()
        if key is not None:
            idempotency.store_response(db, principal, key, status, body)
        return status, body, False

    code, body, replayed = service.store.write(attempt)
    response = Response(body, status_code=code, media_type="application/json")
    response.headers["Location"] = f"/v1/jobs/{rest.Job.model_validate_json(body).id}"
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response

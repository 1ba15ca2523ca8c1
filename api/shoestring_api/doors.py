# SPDX-License-Identifier: Apache-2.0
"""What every request passes: its Host header, size and query are checked, its time measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from fastapi import Request
from fastapi.dependencies.models import Dependant
from prometheus_client import Histogram
from shoestring_core.errors import InvalidRequest, TooLarge
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoestring_api import problems

SECONDS = Histogram("shoestring_http_seconds", "Time to the first byte of a response", ["method", "route", "status"])


class HostCheck:
    """Refuses requests for other hosts: a foreign page that rebinds its name to loopback names itself here."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._hosts:
            await self._app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "").lower()
        name = host if host in self._hosts or host.endswith("]") else host.rpartition(":")[0] or host
        if name in self._hosts:
            await self._app(scope, receive, send)
            return
        refusal = problems.problem(
            400, "wrong-host", "This address is not served here", f"Requests for {host[:100]!r} are not answered.",
            hint="Use the printed address, or add the name to SHOESTRING_ALLOWED_HOSTS.",
        )  # fmt: skip
        await refusal(scope, receive, send)


class SizeCheck:
    """Refuses bodies that are too large: at once where the size is told, else when that much has come."""

    def __init__(self, app: ASGIApp, limit: int, streamed: Sequence[str]) -> None:
        self._app, self._limit, self._streamed = app, limit, tuple(streamed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(self._streamed):
            await self._app(scope, receive, send)
            return
        told = Headers(scope=scope).get("content-length", "")
        if told.isdecimal() and int(told) > self._limit:
            await problems.of(self._refusal())(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit:
                raise HTTPException(413, str(self._refusal()))
            return message

        await self._app(scope, counted, send)

    def _refusal(self) -> TooLarge:
        return TooLarge(f"The request body is larger than the {self._limit:,} bytes that are taken here.")


def check_query(request: Request) -> None:
    """Refuses a parameter that a route of /v1 doesn't take: a misspelt filter must not show everything."""
    route = request.scope.get("route")  # none where the dashboard is asked for an address that no route has
    if route is None or not request.url.path.startswith("/v1/"):
        return
    known = sorted(_parameters(route.dependant))
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(f"There is no query parameter {name[:60]!r} here.", hint=problems.meant(name, known))


def _parameters(dependant: Dependant) -> Iterator[str]:
    yield from (parameter.alias for parameter in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _parameters(inner)


class Timing:
    """Counts responses and how long they took to begin, by route and not by address."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                SECONDS.labels(scope["method"], route, str(message["status"])).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, timed)

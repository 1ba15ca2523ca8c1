# SPDX-License-Identifier: Apache-2.0
"""ASGI middleware for every request: check the Host header, limit the body size, answer HEAD, measure the time."""

from __future__ import annotations

import time
from collections.abc import Sequence

import anyio
from prometheus_client import Histogram
from shoestring_core.errors import TooLarge
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoestring_api import problems

RESPONSE_SECONDS = Histogram(
    "shoestring_http_response_seconds", "Time until a response starts", ["method", "route", "status"]
)


class AllowedHosts:
    """Reject requests for other hosts, which prevents DNS rebinding: a foreign page that resolves to loopback still
    sends its own name in the Host header."""

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
        response = problems.problem_response(
            400, "wrong-host", "Host not allowed", f"This service does not answer requests for {host[:100]!r}.",
            hint="Use the printed address, or add the name to SHOESTRING_ALLOWED_HOSTS.",
        )  # fmt: skip
        await response(scope, receive, send)


class BodySizeLimit:
    """Reject bodies over the limit: at once by Content-Length, otherwise when that many bytes have been received."""

    def __init__(self, app: ASGIApp, limit: int, streamed: Sequence[str]) -> None:
        self._app, self._limit, self._streamed = app, limit, tuple(streamed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(self._streamed):
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limit:
            await problems.from_error(self._error())(scope, receive, send)
            return
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise HTTPException(413, str(self._error()))
            return message

        await self._app(scope, limited_receive, send)

    def _error(self) -> TooLarge:
        return TooLarge(f"The request body is larger than the limit of {self._limit:,} bytes.")


class HeadAsGet:
    """Answers HEAD as GET without the body: no route needs to know of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        with anyio.CancelScope() as rest_of_the_body:

            async def send_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                elif message["type"] == "http.response.body" and not rest_of_the_body.cancel_called:
                    await send({"type": "http.response.body", "body": b""})
                    if message.get("more_body"):  # a stream, which may never end
                        rest_of_the_body.cancel()

            await self._app({**scope, "method": "GET"}, receive, send_headers)


class RequestTiming:
    """Count responses and the time until they start, labelled by route rather than by path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.perf_counter()

        async def timed_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                seconds = time.perf_counter() - started_at
                RESPONSE_SECONDS.labels(scope["method"], route, str(message["status"])).observe(seconds)
            await send(message)

        await self._app(scope, receive, timed_send)

# SPDX-License-Identifier: Apache-2.0
"""Headers that tell browsers what they may do with an answer: run, frame, store, pass on."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'{scripts}; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY.format(scripts=""),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
HASHED_ASSETS = "/assets/"
"""The dashboard's files whose names contain a hash of their content."""
COMPRESSED_PATHS = (HASHED_ASSETS, "/static-offline-docs/", "/openapi.json")


class ResponseHeaders:
    """Adds SECURITY_HEADERS, where an answer has none of its own, and the rules for caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in headers_of(scope["path"]).items():
                    headers.setdefault(name, value)
                if scope["path"].startswith(HASHED_ASSETS) and _is_asset(message["status"], headers):
                    headers["Cache-Control"] = "public, max-age=31536000, immutable"
            await send(message)

        await self._app(scope, receive, send_with_headers)


def headers_of(path: str) -> dict[str, str]:
    return SECURITY_HEADERS | ({"Cache-Control": "no-store"} if path.startswith("/v1/") else {})


def _is_asset(status: int, headers: MutableHeaders) -> bool:
    """Whether it is the file, and not the dashboard's page in its place."""
    return status in (200, 206, 304) and not headers.get("content-type", "").startswith("text/html")


class Compression:
    """Compresses the static files; answers of the API are small or streamed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._compressing = app, GZipMiddleware(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        static = scope["type"] == "http" and scope["path"].startswith(COMPRESSED_PATHS)
        await (self._compressing if static else self._app)(scope, receive, send)

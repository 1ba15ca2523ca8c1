# SPDX-License-Identifier: Apache-2.0
"""The error that rejects a request."""

from __future__ import annotations


class RequestRejected(Exception):
    """A request that is answered with an error: an HTTP status, a stable code and a message that says what to do."""

    def __init__(self, status: int, code: str, detail: str, **more: object) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"code": code, "detail": detail, **more}


def require(condition: object, detail: str) -> None:
    """Raise RequestRejected (400) unless the condition holds."""
    if not condition:
        raise RequestRejected(400, "bad-request", detail)

# SPDX-License-Identifier: Apache-2.0
"""The service itself: whether it is ready, and the form of its errors."""

from __future__ import annotations

from shoestring_core.errors import Problem
from shoestring_core.rest.base import Resource


class Readiness(Resource):
    ready: bool
    parts: dict[str, str]
    """Component → "ok", or what is wrong and what to do."""


class ProblemDocument(Resource):
    """RFC 9457, `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str | None = None
    retryable: bool = False
    errors: list[Problem] = []


# SSE events of GET /v1/stream?topics=jobs,job:ID,budget&cursor=…: `job` (Job), `points` (PointsMessage),
# `logs` (LogsMessage), `event` (Event), `budget` (Budget), `resync` ({}: the cursor is too old; reload everything),
# `ping` ({}: there was nothing else for a while).

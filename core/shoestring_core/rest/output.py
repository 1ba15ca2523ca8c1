# SPDX-License-Identifier: Apache-2.0
"""What a job writes: metrics, logs and artifacts, read at once or streamed."""

from __future__ import annotations

from uuid import UUID

from pydantic import Field

from shoestring_core.json_floats import AnyFloat
from shoestring_core.rest.attempts import Generation
from shoestring_core.rest.base import Resource
from shoestring_core.wire import PART_NAME, SHA256


class Curve(Resource):
    """One metric. `generation` is None on the merged curve; `rolled_back`: steps that a later generation recomputed."""

    name: str
    generation: int | None = None
    machine: UUID | None = None
    rolled_back: bool = False
    steps: list[int]
    times: list[float]
    values: list[AnyFloat]


class Metrics(Resource):
    curves: list[Curve]
    generations: list[Generation]
    cursor: str
    """Position in the event feed: a stream opened with this cursor misses nothing."""


class LogLine(Resource):
    machine: UUID
    slot: int
    rank: int
    offset: int
    text: str
    """One line; ANSI sequences are kept, carriage returns are resolved."""


class Logs(Resource):
    lines: list[LogLine]
    next_cursor: str | None = None
    truncated: bool = False
    """The job's log quota was reached; later lines were not stored."""


class Artifact(Resource):
    name: str = Field(pattern=PART_NAME)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=SHA256)
    step: int
    url: str


class ArtifactList(Resource):
    artifacts: list[Artifact]


class PointsMessage(Resource):
    """SSE event `points`: new metric points of one job, as reported."""

    job: UUID
    generation: int
    curves: list[Curve]


class LogsMessage(Resource):
    """SSE event `logs`: new log lines of one job."""

    job: UUID
    lines: list[LogLine]

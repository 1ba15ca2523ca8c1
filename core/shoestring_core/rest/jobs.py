# SPDX-License-Identifier: Apache-2.0
"""Jobs, and what clients send to submit and stop them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from shoestring_core.json_floats import AnyFloat
from shoestring_core.rest.base import Cost, Progress, Reason, RequestBody, Resource
from shoestring_core.states import DesiredState, EndReason, JobState, JobStatus, WaitReason


class Job(Resource):
    id: UUID
    name: str
    team: str
    user: str
    recipe: str | None
    state: JobState
    status: JobStatus
    """The state, and of an ended job how it ended: what lists and badges show."""
    status_text: str
    """State and reason in words a user can act on."""
    wait_reason: WaitReason | None = None
    """What a queued or paused job waits for."""
    queue_position: int | None = None
    """Place among its member's queued jobs, from 1; null for one not in the queue, or that over 99 are ahead of."""
    end_reason: EndReason | None = None
    reason: Reason | None = None
    """What exactly it waits for, or why exactly it ended, where more is known than wait_reason or end_reason."""
    desired_state: DesiredState
    attempt: int
    generation: int
    progress: Progress
    latest: dict[str, AnyFloat] = {}
    """Latest value of each metric."""
    result: dict[str, Any] | None = None
    cost: Cost
    spec: dict[str, Any]
    sizing: Reason | None = None
    """Why these machines were chosen and not faster ones, if limits.time is set."""
    deadline: Reason | None = None
    """What is reserved for limits.deadline, and where the job trains to keep it; none once it has ended."""
    outlasts_notice: Reason | None = None
    """Why an interruption loses work, as it was known when the job was submitted: its checkpoints take longer to store
    than a spot machine has after its notice."""
    tags: dict[str, str] = {}
    retried_from: UUID | None = None
    created_at: datetime
    started_at: datetime | None = None
    """When its first generation was formed."""
    first_step_at: datetime | None = None
    ended_at: datetime | None = None
    settled_at: datetime | None = None


class JobPage(Resource):
    jobs: list[Job]
    next_cursor: str | None = None


class SubmitJobRequest(RequestBody):
    """Body of POST /v1/jobs: the spec as a tree, or its YAML/JSON text."""

    spec: dict[str, Any] | str
    dry_run: bool = False


class StopJobRequest(RequestBody):
    """Body of POST /v1/jobs/{id}:stop. Both save a checkpoint first; a paused job can be resumed."""

    mode: Literal["stop", "pause"] = "stop"

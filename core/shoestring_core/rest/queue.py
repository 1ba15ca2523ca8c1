# SPDX-License-Identifier: Apache-2.0
"""The queue, expected starts and what-ifs."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import AwareDatetime, Field

from shoestring_core.decide.queue import MAX_WEIGHT, MIN_WEIGHT
from shoestring_core.decide.what_ifs import MAX_CHANGES
from shoestring_core.rest.base import Dollars, Money, Reason, RequestBody, Resource
from shoestring_core.rest.budgets import SpentBy
from shoestring_core.rest.offers import Offer
from shoestring_core.states import WaitReason


class ExpectedStart(Resource):
    """When and where a queued job is expected to start, if jobs take as long as their quotes say."""

    at: datetime
    nodes: int
    offer: Offer
    ends_at: datetime | None
    """None: no run says how long it takes."""
    cost: Money | None
    """Expected; None: no run says."""


class QueueEntry(Resource):
    job: UUID
    name: str
    user: str
    recipe: str | None
    position: int
    """Its place in the queue of all teams, from 1."""
    queued_at: datetime
    wait_reason: WaitReason | None
    """None: it starts now."""
    reason: Reason | None
    start: ExpectedStart | None
    """None: it can't be told."""
    outlook: Reason
    """When it starts, and for how much more it would start now, in words."""


class Queue(Resource):
    """The team's queued jobs in the order of service."""

    at: datetime
    waiting: int
    """Jobs in the queue, of all teams."""
    jobs: list[QueueEntry]
    further_back: int
    """Jobs of all teams behind those whose place is known."""


class BudgetWhatIf(RequestBody):
    """Another limit or weight of a budget; what isn't named stays as it is."""

    budget: UUID = Field(strict=False)
    limit: Dollars | None = None
    """Dollars of its period, such as 25.00; "none": no limit."""
    weight: int | None = Field(default=None, ge=MIN_WEIGHT, le=MAX_WEIGHT)


class JobWhatIf(RequestBody):
    """Something else with a queued job of the team."""

    job: UUID = Field(strict=False)
    first: bool = False
    """Before its owner's other jobs."""
    any_machine: bool = False
    """On machines of any provider, place, type and market."""
    gpu: str | None = Field(default=None, max_length=1_000)
    """On machines with these GPUs, as `resources.gpu` has them."""
    deadline: AwareDatetime | None = Field(default=None, strict=False)
    """Another one, of a job that has limits.deadline."""
    stop: bool = False
    """It leaves the queue."""


class WhatIfRequest(RequestBody):
    """Body of POST /v1/what-ifs."""

    budgets: list[BudgetWhatIf] = Field(default=[], max_length=MAX_CHANGES)
    jobs: list[JobWhatIf] = Field(default=[], max_length=MAX_CHANGES)


class WhatIfJob(Resource):
    """A queued job of the team: when it is expected to start as things are, and with the changes."""

    job: UUID
    name: str
    user: str
    before: ExpectedStart | None
    after: ExpectedStart | None
    """None: it can't be told, or the job leaves the queue."""


class WhatIfBudget(Resource):
    """What a budget is expected to have spent of its period, as things are and with the changes."""

    budget: UUID
    kind: str
    owner: str
    limit_before: Money | None
    limit_after: Money | None
    before: list[SpentBy]
    after: list[SpentBy]


class WhatIf(Resource):
    """The schedule to come, as things are and with the changes. Nothing is changed by asking."""

    at: datetime
    summary: Reason
    jobs: list[WhatIfJob]
    paused: list[UUID]
    """Running jobs of the team that would pause, because a limit is below what is spent and held."""
    budgets: list[WhatIfBudget]
    """Those that are changed, and the team's."""

# SPDX-License-Identifier: Apache-2.0
"""Attempts, their generations and machines."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BeforeValidator, Field

from shoestring_core.rest.base import Money, Reason, RequestBody, Resource
from shoestring_core.states import AttemptState, GenerationState, MachineState


class BillLine(Resource):
    """One line of a machine's bill so far."""

    line: str
    """machine, disk, address"""
    amount: Money
    basis: Literal["settled", "estimate"]
    """settled: from the times and prices that the provider reported; it is still not the provider's invoice."""
    reason: Reason


class Machine(Resource):
    id: UUID
    attempt: int
    slot: int
    ordinal: int
    provider: str
    region: str
    zone: str
    type: str
    market: str
    state: MachineState
    provider_id: str | None = None
    image: str | None = None
    """Id of the image that it boots, if the provider reports it."""
    driver: str | None = None
    """Version of NVIDIA's driver, where its boot told it."""
    price_per_hour: Money
    on_demand_per_hour: Money
    left: Reason | None = None
    """It has no more work, and its attempt continues without it: why it still runs, and until when."""
    launched_at: datetime | None = None
    ended_at: datetime | None = None
    end_cause: str | None = None
    last_report_at: datetime | None = None
    cost: Money
    posted: bool
    lines: list[BillLine] = []


class Generation(Resource):
    number: int
    attempt: int
    state: GenerationState
    world_size: int
    start_step: int
    last_step: int | None = None
    """Last reported step."""
    merged_through: int | None = None
    """Last step of this generation in the merged curve; its later steps are rolled back."""
    rolled_back_steps: int = 0
    formed_at: datetime | None = None
    first_step_at: datetime | None = None
    ended_at: datetime | None = None
    end_reason: Reason | None = None


class Attempt(Resource):
    number: int
    state: AttemptState
    reason: str | None = None
    trained: bool
    """Whether a training step ran in it."""
    machines: list[Machine]
    generations: list[Generation]
    opened_at: datetime
    closed_at: datetime | None = None


class AttemptList(Resource):
    attempts: list[Attempt]
    steps: int
    """Number of steps in the merged curve."""
    rolled_back_steps: int


def _from_exact(value: Any) -> Any:
    """A float of the exact number that the service reads from JSON; anything else as it is."""
    return float(value) if isinstance(value, Decimal) else value


class PreemptRequest(RequestBody):
    """Body of POST /v1/machines/{id}:preempt (admin, simulated providers only)."""

    notice_s: Annotated[float, BeforeValidator(_from_exact), Field(ge=0, le=600)] = 120

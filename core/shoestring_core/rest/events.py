# SPDX-License-Identifier: Apache-2.0
"""Events, one model for each kind."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field
from typing_extensions import TypeAliasType

from shoestring_core import events
from shoestring_core.rest.base import Reason, Resource


class BaseEvent(Resource):
    cursor: str
    at: datetime
    job: UUID | None
    attempt: int | None = None
    generation: int | None = None
    actor: str
    reason: Reason | None


class JobEvent(BaseEvent):
    kind: Literal["job"]
    data: events.JobChange


class WaitEvent(BaseEvent):
    kind: Literal["wait"]
    data: events.WaitChange


class SizingEvent(BaseEvent):
    kind: Literal["sizing"]
    data: events.MachinesChosen


class MachineEvent(BaseEvent):
    kind: Literal["machine"]
    data: events.MachineChange


class GenerationEvent(BaseEvent):
    kind: Literal["generation"]
    data: events.GenerationChange


class CheckpointEvent(BaseEvent):
    kind: Literal["checkpoint"]
    data: events.CheckpointStored


class BatchEvent(BaseEvent):
    kind: Literal["batch"]
    data: events.BatchStored


class CostEvent(BaseEvent):
    kind: Literal["cost"]
    data: events.CostChange


class BudgetEvent(BaseEvent):
    kind: Literal["budget"]
    data: events.LimitChange


class WeightEvent(BaseEvent):
    kind: Literal["weight"]
    data: events.WeightChange


class GuaranteedRateEvent(BaseEvent):
    kind: Literal["guaranteed_rate"]
    data: events.GuaranteedRateChange


class ConcurrencyEvent(BaseEvent):
    kind: Literal["concurrency"]
    data: events.ConcurrencyChange


class SoftLineEvent(BaseEvent):
    kind: Literal["soft_line"]
    data: events.SoftLineReached


class SoftLinesEvent(BaseEvent):
    kind: Literal["soft_lines"]
    data: events.SoftLinesChange


class ForecastEvent(BaseEvent):
    kind: Literal["forecast"]
    data: events.ForecastAlert


class BudgetRequestEvent(BaseEvent):
    kind: Literal["budget_request"]
    data: events.BudgetRequestChange


class AlarmEvent(BaseEvent):
    kind: Literal["alarm"]
    data: events.Alarm


class StorageEvent(BaseEvent):
    kind: Literal["storage"]
    data: events.StorageChange


class AgentEvent(BaseEvent):
    kind: Literal["agent"]
    data: events.AgentReport


Event = TypeAliasType(
    "Event",
    Annotated[
        JobEvent
        | WaitEvent
        | SizingEvent
        | MachineEvent
        | GenerationEvent
        | CheckpointEvent
        | BatchEvent
        | CostEvent
        | BudgetEvent
        | WeightEvent
        | GuaranteedRateEvent
        | ConcurrencyEvent
        | SoftLineEvent
        | SoftLinesEvent
        | ForecastEvent
        | BudgetRequestEvent
        | AlarmEvent
        | StorageEvent
        | AgentEvent,
        Field(discriminator="kind"),
    ],
)
"""An event of the feed; `kind` determines the type of its data."""


class EventPage(Resource):
    events: list[Event]
    next_cursor: str | None = None

# SPDX-License-Identifier: Apache-2.0
"""What an event of the feed says: a model for each kind, checked when it is written and part of the REST resource."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from shoestring_core import wire
from shoestring_core.states import DesiredState, EndReason, GenerationState, JobState, MachineState


class EventData(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="ignore",  # so that an older client can talk to a newer service
        validate_by_name=True,
        serialize_by_alias=True,
        json_schema_serialization_defaults_required=True,
    )
    kind: ClassVar[str]


class JobChange(EventData):
    """The job's state changed, or what it is to do after stopping (`desired_state`)."""

    kind: ClassVar[str] = "job"
    from_state: JobState | None = Field(alias="from")
    """None: it was submitted."""
    to: JobState
    desired_state: DesiredState | None = None
    end_reason: EndReason | None = None


class WaitChange(EventData):
    """A queued job waits for something else now."""

    kind: ClassVar[str] = "wait"
    from_reason: str | None = Field(alias="from")
    to: str


class MachinesChosen(EventData):
    """Which machines were chosen for limits.time, or why none; or for limits.deadline, and what is reserved for it."""

    kind: ClassVar[str] = "sizing"
    outcome: str
    nodes: int
    type: str | None


class MachineChange(EventData):
    """The machine's state changed, its agent registered, or it got a preemption notice, after which its work is over
    and it is left to its provider."""

    kind: ClassVar[str] = "machine"
    machine: UUID
    state: MachineState | Literal["registered", "notice", "left"]
    cause: str | None = None
    """Why it terminated, as the provider reports it."""


class GenerationChange(EventData):
    """A generation was opened or formed, or the ranks of one of its machines exited."""

    kind: ClassVar[str] = "generation"
    state: GenerationState | Literal["exited"]
    machine: UUID | None = None
    exits: tuple[wire.RankExit, ...] = ()


class CheckpointStored(EventData):
    """`promoted`: it is the job's newest; False: its generation was over, so it is history."""

    kind: ClassVar[str] = "checkpoint"
    checkpoint: UUID
    step: int
    bytes: int
    promoted: bool
    final: bool = False


class BatchStored(EventData):
    """Points or logs arrived from a machine, or from another source of points."""

    kind: ClassVar[str] = "batch"
    source: UUID
    seq: int


CostAction = Literal["held", "extended", "released", "posted", "settled", "billed", "job_settled"]


class CostChange(EventData):
    """Money of a machine moved, its bill is final (billed), or the whole job's (job_settled)."""

    kind: ClassVar[str] = "cost"
    action: CostAction
    machine: UUID | None = None
    amount: str | None = None
    """Dollars."""


class LimitChange(EventData):
    """What an account may spend changed: dollars; None: no limit."""

    kind: ClassVar[str] = "budget"
    account: UUID
    limit: str | None
    before: str | None


class WeightChange(EventData):
    """A team's or member's share of the dollars, compared with that of the others, changed."""

    kind: ClassVar[str] = "weight"
    account: UUID
    weight: int
    before: int


class GuaranteedRateChange(EventData):
    """What a team may use before it borrows from others changed: dollars an hour."""

    kind: ClassVar[str] = "guaranteed_rate"
    account: UUID
    rate: str
    before: str


class ConcurrencyChange(EventData):
    """How many jobs and GPUs of a team or member may run at once changed; None: no cap."""

    kind: ClassVar[str] = "concurrency"
    account: UUID
    max_jobs: int | None
    max_gpus: int | None


class SoftLineReached(EventData):
    """What is spent and held of a budget has reached a share of its limit, for the first time since the limit moved."""

    kind: ClassVar[str] = "soft_line"
    account: UUID
    percent: int
    limit: str
    used: str


class SoftLinesChange(EventData):
    """The shares of a budget's limit at which its spenders are warned changed."""

    kind: ClassVar[str] = "soft_lines"
    account: UUID
    percents: tuple[int, ...]


class ForecastAlert(EventData):
    """More than a budget's limit is expected to be spent before its period ends."""

    kind: ClassVar[str] = "forecast"
    account: UUID
    expected: str
    limit: str


class BudgetRequestChange(EventData):
    """A member asked for more dollars, or an admin approved or denied that."""

    kind: ClassVar[str] = "budget_request"
    request: UUID
    account: UUID
    amount: str
    state: Literal["open", "approved", "denied"]


class Overdraft(BaseModel):
    account: str
    overdraft: str


class Alarm(EventData):
    kind: ClassVar[str] = "alarm"
    alarm: Literal["overrun", "limit_lowered", "wrong_boot_token", "second_session", "wrong_session"]
    machine: UUID | None = None
    overdrawn: tuple[Overdraft, ...] = ()


class StorageChange(EventData):
    """Checkpoints of a job that runs can't be stored for much longer (lost), or again for as long as it runs."""

    kind: ClassVar[str] = "storage"
    lost: bool


class AgentReport(EventData):
    """An event on a machine. Further fields are what its ranks logged: hooks may log anything."""

    model_config = ConfigDict(extra="allow", ser_json_inf_nan="strings")
    kind: ClassVar[str] = "agent"
    event: str
    """boot, started, gradient_overflow, skipped, preemption_notice, rebalance, rejected, log_quota, warning, …"""
    machine: UUID
    at: float
    step: int | None


MODELS: Mapping[str, type[EventData]] = {model.kind: model for model in EventData.__subclasses__()}


def from_stored(kind: str, data: dict[str, Any]) -> EventData:
    """The data of an event as it was written."""
    return wire.from_stored(MODELS[kind], data)

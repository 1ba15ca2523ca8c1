# SPDX-License-Identifier: Apache-2.0
"""The REST resources of `/v1`, shared by the service and its clients.

Times are RFC 3339 UTC, durations seconds, money a decimal string with its currency.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import TypeAliasType

from shoestring_core import events, recipes, wording
from shoestring_core import money as micro_dollars
from shoestring_core.decide.access import KeyKind, Role, Scope
from shoestring_core.decide.queue import MAX_CAP, MAX_WEIGHT, MIN_WEIGHT
from shoestring_core.decide.quotes import MAX_MACHINE_COUNTS
from shoestring_core.decide.soft_lines import MAX_LINES
from shoestring_core.decide.what_ifs import MAX_CHANGES
from shoestring_core.errors import Problem
from shoestring_core.json_floats import AnyFloat
from shoestring_core.spec import MAX_NODES
from shoestring_core.states import (
    AttemptState,
    DesiredState,
    EndReason,
    GenerationState,
    JobState,
    JobStatus,
    MachineState,
    WaitReason,
)
from shoestring_core.wire import PART_NAME, SHA256


class Resource(BaseModel):
    # Unknown fields are ignored, so that an older client can talk to a newer service.
    model_config = ConfigDict(
        extra="ignore",
        ser_json_inf_nan="strings",
        allow_inf_nan=True,
        json_schema_serialization_defaults_required=True,  # the service always sends every field
    )


MAX_SENTENCE = 500
Sentence = Annotated[str, Field(max_length=MAX_SENTENCE)]
"""Of a person, about what they change."""
Dollars = Annotated[str, Field(max_length=100)]
"""Decimal, as a client sends them."""


class RequestBody(Resource):
    """What a client sends: unknown fields are refused, and nothing is converted, such as true to 1."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _from_exact(value: Any) -> Any:
    """A float of the exact number that the service reads from JSON; anything else as it is."""
    return float(value) if isinstance(value, Decimal) else value


class Money(Resource):
    amount: str
    currency: str = "USD"

    @classmethod
    def of(cls, micro: int) -> Money:
        return cls(amount=micro_dollars.to_decimal(micro))


class Reason(Resource):
    """Why something is as it is. Programs decide by code and facts; the text is for people and may be reworded."""

    code: str
    facts: dict[str, Any]
    text: str

    @classmethod
    def of(cls, reason: wording.Reason) -> Reason:
        return cls.worded(**reason.as_json())

    @classmethod
    def worded(cls, code: str, facts: dict[str, Any]) -> Reason:
        return cls(code=code, facts=facts, text=wording.render(code, facts))

    @classmethod
    def from_stored(cls, stored: object) -> Reason | None:
        """From a JSON column of reasons. None if it is empty, or damaged."""
        match stored:
            case {"code": str(code), "facts": dict(facts)}:
                return cls.worded(code, facts)
        return None


class Progress(Resource):
    step: int
    """Last step of the merged curve."""
    steps_total: int | None = None
    epoch: float | None = None
    fraction: float | None = None
    eta_s: float | None = None


class Cost(Resource):
    """Cost of a job. `spent` is settled from the provider's records; `running` is estimated, not yet posted."""

    spent: Money
    running: Money
    estimated: Money = Money(amount="0.00")
    """The part of both that is for disks and addresses: by list prices, an estimate even when it is settled."""
    held: Money
    on_demand: Money
    """On-demand equivalent: the price of the same machine time on demand."""
    limit: Money | None = None
    settled: bool
    price_basis: Literal["simulated", "live", "snapshot"]


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


class CreateQuoteRequest(RequestBody):
    """Body of POST /v1/quotes: a spec as POST /v1/jobs takes it."""

    spec: dict[str, Any] | str
    machine_counts: list[Annotated[int, Field(ge=1, le=MAX_NODES)]] = Field(default=[], max_length=MAX_MACHINE_COUNTS)
    """Numbers of machines to compare. Without any: those that earlier runs say something about."""


class SecondsBand(Resource):
    """Four runs of five take between `low` and `high`, at most one of ten less; half take less than `expected`."""

    low: float
    expected: float
    high: float


class MoneyBand(Resource):
    """Four runs of five cost between `low` and `high`, at most one of ten less; half cost less than `expected`."""

    low: Money
    expected: Money
    high: Money


class Interruptions(Resource):
    """How likely a job is to be interrupted, and where that comes from."""

    source: Literal["on_demand", "measured", "advisor", "unknown"]
    """measured: on spot machines of this service, and in the bands; advisor: only the offer's `interruption` is known,
    and not in the bands; unknown: nothing is; on_demand: it never is."""
    probability: float | None = None
    """Of at least one interruption."""
    losses: int | None = None
    """Spot machines of this type that were interrupted."""
    machine_hours: float | None = None
    """In which that happened."""


class QuotedOffer(Resource):
    """An offer for a job, with a number of machines. Money is for all machines together."""

    nodes: int
    offer: Offer
    basis: Literal["measured", "scaled", "unknown"]
    """measured: from the team's runs on as many machines of this type; scaled: from `scaled_from`; unknown: no run says
    anything, so there is no time and no cost."""
    scaled_from: list[str]
    """Machines that were measured, such as "2 × g5.xlarge"."""
    runs: int
    """Number of runs that were measured."""
    time_s: SecondsBand | None
    """From the launch of the machines until the job ends; the time in the queue is not included."""
    cost: MoneyBand | None
    """At today's price."""
    hold: Money
    """What is held when the job starts."""
    max_cost: Money | None
    """The most that limits.time and limits.cost allow; None: they limit nothing."""
    left_after_hold: Money | None
    """What the tightest budget has left when the job has started. Negative: so much is missing. None: no limit."""
    left_after_end: Money | None
    """The same when the expected cost is paid."""
    interruptions: Interruptions
    infeasible_reason: Literal["slots", "batch", "rate", "budget", "time"] | None = None
    """Why it can't be chosen."""
    outlasts_notice: Reason | None = None
    """Why an interruption loses work: the job's checkpoints take longer to store than a spot machine has after its
    notice. None: not as far as is known."""


class Quote(Resource):
    """Where a job would run, how long it takes and what it costs. Nothing is stored, nothing spent."""

    at: datetime
    outcome: Literal["chosen", "requested", "unmeasured"]
    """chosen: the machines are, for limits.time; requested: as the spec says; unmeasured: no similar run."""
    nodes: int
    type: str | None
    """The type of machine; None: whatever is cheapest."""
    summary: Reason
    why_not_faster: Reason | None
    offers: list[QuotedOffer]
    """Those that suit the job, best first: it gets the first one that has free slots."""
    no_offer: Reason | None
    """Why there are none: what the job would wait for."""
    machine_counts: list[QuotedOffer]
    """Of each type of machine the best offer, with other numbers of machines: time against cost."""
    quotas: list[Reason]
    """Of the providers' accounts, that the job's machines count against, or would if the quotas covered them."""
    time_limit_s: float | None
    sufficient_time_limit_s: int | None
    """The limits.time that would be enough, where it is too short."""
    runs: int
    """The team's earlier runs of the same work."""
    deadline: Reason | None = None
    """What limits.deadline would commit, if the job has one."""


class KeptQuote(Resource):
    """The quote of the offer that a job would have got when it was submitted, beside what it took."""

    nodes: int
    type: str
    market: str
    basis: Literal["measured", "scaled", "unknown"]
    runs: int
    time_s: SecondsBand
    cost: MoneyBand
    actual: QuoteOutcome | None
    """None: it can't be compared; `summary` says why."""
    summary: Reason


class QuoteOutcome(Resource):
    """From the launch of the machines until the job ended, and what they cost; where both lie to the quoted bands."""

    time_s: float
    cost: Money
    time_place: Literal["below", "within", "above"]
    cost_place: Literal["below", "within", "above"]


class RecipeCalibration(Resource):
    """How many of a recipe's finished jobs took a time, and a cost, within what was quoted."""

    recipe: str
    compared: int
    time_within: int
    cost_within: int
    not_compared: int
    """Jobs that stopped early, were paused, or ran on other machines than those that were quoted."""


class Calibration(Resource):
    """How well the quotes of the team's newest jobs held."""

    level: float
    """The share of runs that a band is made to hold."""
    recipes: list[RecipeCalibration]
    compared: int
    time_within: int
    cost_within: int
    summary: Reason


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


class StopJobRequest(RequestBody):
    """Body of POST /v1/jobs/{id}:stop. Both save a checkpoint first; a paused job can be resumed."""

    mode: Literal["stop", "pause"] = "stop"


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
    """Id of the image that it boots, where the provider tells it."""
    driver: str | None = None
    """Version of NVIDIA's driver, where its boot told it."""
    price_per_hour: Money
    on_demand_per_hour: Money
    left: Reason | None = None
    """Its work is over and its attempt goes on without it: why it lives on, and until when."""
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
"""An event of the feed; `kind` tells what its data are."""


class EventPage(Resource):
    events: list[Event]
    next_cursor: str | None = None


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


class Transfer(Resource):
    at: datetime
    kind: str
    amount: Money
    debit_account: str
    credit_account: str
    machine: UUID | None = None
    line: str | None = None
    actor: str
    reason: Reason


class Energy(Resource):
    """Energy that the devices of a job's machines used, by their own counters."""

    joules: float
    kwh: float
    of: list[Literal["gpu", "cpu"]]
    """Devices that were measured; other parts of the machine are not included."""


class CostReport(Resource):
    cost: Cost
    machines: list[Machine]
    transfers: list[Transfer]
    budgets: list[Budget]
    """Budgets that pay for it: the job's own first, the organization's last. Empty until a hold is placed."""
    energy: Energy | None = None
    """None if no machine could measure it."""
    quote: KeptQuote | None = None
    """None: no run said what it would take when it was submitted."""


class Artifact(Resource):
    name: str = Field(pattern=PART_NAME)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=SHA256)
    step: int
    url: str


class ArtifactList(Resource):
    artifacts: list[Artifact]


class SoftLine(Resource):
    """A share of a limit at which those who spend from it are told."""

    percent: int
    at: Money | None
    """Dollars of it; None without a limit."""
    reached: bool
    """It was reached since the limit last moved, by what is spent and held."""


class BudgetPeriod(Resource):
    """The month or term that a budget is in. At its end what is unspent carries over, or expires."""

    kind: Literal["month", "term"]
    amount: Money
    """What each month begins with."""
    time_zone: str
    starts_at: datetime
    ends_at: datetime
    ends: str
    """The end as people of its time zone write it."""
    begins: str | None = None
    """The beginning, so written, of one that has not begun: until then the budget is as it is. None: it has."""
    ended: bool
    """A term that is over."""
    rollover: Literal["none", "unspent"]
    rollover_cap: Money | None = None
    """The most that carries over; None: all that is unspent."""
    carried_over: Money
    """What the last period left to this one; part of the limit."""


class Concurrency(Resource):
    """What runs of a team or member, and how much may at once; None: no cap."""

    jobs: int
    max_jobs: int | None
    gpus: int
    max_gpus: int | None


class Budget(Resource):
    id: UUID
    kind: str
    owner: str
    limit: Money | None
    """Of its period, as are `posted` and `held`: what was held at the border counts for the one before."""
    posted: Money
    held: Money
    overdraft: Money
    left: Money | None
    """limit + overdraft − posted − held; None without a limit."""
    weight: int | None = None
    """How its share of the dollars compares with that of other teams or members; None: it shares with none."""
    guaranteed_rate: Money | None = None
    """Of a team: dollars an hour that its machines may cost before it borrows from other teams."""
    concurrency: Concurrency | None = None
    """None: it has no concurrency cap."""
    recent: Money | None = None
    """What it spent, each dollar counted half after each half-life; with what is held it orders the queue."""
    soft_lines: list[SoftLine] = []
    """Rising; those of a job's budget: none."""
    period: BudgetPeriod | None = None
    """None: it is one-off, its limit has no end."""
    etag: str


class SpentBy(Resource):
    at: datetime
    spent: Money


class SpendingBand(Resource):
    """One period of ten ends below `low` and one above `high`, if spending goes on as it did."""

    low: Money
    expected: Money
    high: Money


class BudgetForecast(Resource):
    """What a budget spent in its period, and will have spent when it ends. One-off: in 28 days, and in 30 more."""

    starts_at: datetime
    ends_at: datetime
    limit: Money | None
    spent: Money
    committed: Money
    """What is held now."""
    points: list[SpentBy]
    """What was spent by then, rising in time; the last one is now."""
    at_end: SpendingBand | None
    """If nothing stopped it at the limit. None: there is no limit, or too little was spent to say."""
    pace: Money | None
    """A day, over the last 28 days, or since anything was spent."""
    even_pace: Money | None
    """A day, which would use the limit exactly by the end."""
    exhausted_at: datetime | None
    """When the limit is spent at this pace; None: never, or nobody can say."""
    crosses_limit: bool


class Waste(Resource):
    cause: Literal["set_up", "idle", "lost_steps", "failed_launch"]
    """set_up: before the first step, and each time that ranks start again; idle: in no generation after that;
    lost_steps: training after the checkpoint that was resumed from; failed_launch: machines that made no step."""
    cost: Money


class SplitCost(Resource):
    """A cost and its parts: cost = training + wasted, and wasted is the sum of its causes."""

    cost: Money
    training: Money
    """Training that was kept."""
    wasted: Money
    causes: list[Waste]


class JobWaste(Resource):
    job: UUID
    name: str
    cost: SplitCost


class WasteReport(Resource):
    """What the machines that were made since then cost by now."""

    since: datetime
    total: SplitCost
    jobs: list[JobWaste]
    """Those that wasted the most, the first ten."""


class Hosting(Resource):
    """The machine that the service runs on: an estimate, which no budget pays for."""

    name: str
    hourly: Money
    since: datetime
    """When it started."""
    spent: Money
    """Since then."""


class BudgetList(Resource):
    budgets: list[Budget]
    hosting: Hosting | None = None
    """None: the service runs where nobody is billed for it by the hour."""
    leaked: Money = Money(amount="0.00")
    """What machines, disks and addresses have cost that ran at a provider without a job: no budget paid for them."""


class SetBudgetRequest(RequestBody):
    limit: Dollars
    """Decimal dollars."""
    reason: Sentence = ""


class GrantRequest(RequestBody):
    amount: Dollars
    """Decimal dollars to add to the limit."""
    reason: Sentence = ""


class TransferRequest(RequestBody):
    to: UUID = Field(strict=False)
    """The budget that gets them; below the same budget as the one that gives."""
    amount: Dollars
    """Decimal dollars."""
    reason: Sentence = ""


class BudgetRequest(Resource):
    """A member's request for more dollars."""

    id: UUID
    budget: UUID
    owner: str
    """The name of the budget: team vision, member ada."""
    user: str
    amount: Money
    why: str
    state: Literal["open", "approved", "denied", "expired"]
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None = None
    decided_by: str | None = None
    note: str = ""
    approvable: bool = False
    """It is open, and the caller may approve it: a lead, but not their own; one for the team's budget, an admin."""
    effect: Reason | None = None
    """Of an open one: what its approval would leave for others."""


class BudgetRequestList(Resource):
    requests: list[BudgetRequest]


class AskForBudgetRequest(RequestBody):
    amount: Dollars
    """Decimal dollars to add to the limit."""
    why: Sentence = Field(min_length=1)
    budget: UUID | None = Field(default=None, strict=False)
    """Your own budget or your team's; None: your own if it has a limit, else the team's."""


class DecideBudgetRequest(RequestBody):
    note: Sentence = ""


class SetWeightRequest(RequestBody):
    weight: int = Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)
    reason: Sentence = ""


class SetGuaranteedRateRequest(RequestBody):
    rate: Dollars
    """Decimal dollars an hour; 0: all that the team uses is borrowed."""
    reason: Sentence = ""


class SetConcurrencyRequest(RequestBody):
    """Null: there is no cap. 0: none start."""

    max_jobs: int | None = Field(ge=0, le=MAX_CAP)
    max_gpus: int | None = Field(ge=0, le=MAX_CAP)
    reason: Sentence = ""


class SetPeriodRequest(RequestBody):
    kind: Literal["one_off", "month", "term"]
    time_zone: str = Field(default="UTC", max_length=60)
    """In which a day, and so a month, begins."""
    until: date | None = Field(default=None, strict=False)
    """Of a term: its last day."""
    starts: date | None = Field(default=None, strict=False)
    """The first day, in the future; None: it begins now."""
    rollover: Literal["none", "unspent"] = "none"
    rollover_cap: Dollars | None = None
    """Decimal dollars that carry over at most; None: all that is unspent."""
    reason: Sentence = ""


class SetSoftLinesRequest(RequestBody):
    percents: list[int] = Field(max_length=MAX_LINES)
    """Whole numbers from 1 to 100; none: nobody is told."""
    reason: Sentence = ""


class RecipeParameter(Resource):
    name: str
    type: str
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    choices: list[Any] | None = None
    help: str = ""


class Recipe(Resource):
    name: str
    version: int
    title: str
    description: str
    data: str
    metric: str
    params: list[RecipeParameter]
    claim: recipes.RecipeClaim | None = None

    @classmethod
    def from_recipe(cls, recipe: recipes.Recipe) -> Recipe:
        return cls(
            name=recipe.name,
            version=recipe.version,
            title=recipe.title,
            description=recipe.description,
            data=recipe.data.kind,
            metric=recipe.metric,
            params=[
                RecipeParameter(
                    name=name,
                    type=param.type,
                    default=param.default,
                    minimum=param.min,
                    maximum=param.max,
                    choices=None if param.choices is None else list(param.choices),
                    help=param.help,
                )
                for name, param in recipe.params.items()
            ],
            claim=recipe.claim_with_variants(),
        )


class RecipeList(Resource):
    recipes: list[Recipe]


class Offer(Resource):
    """A type of machine in one zone and market, as its provider or a built-in price list has it."""

    provider: str
    region: str
    zone: str
    """Empty: anywhere in the region."""
    type: str
    market: Literal["spot", "on_demand"]
    price_per_hour: Money
    on_demand_per_hour: Money
    price_source: str
    fetched_at: datetime | None
    """When the provider said so last. None: a built-in price list, of the dates in `price_source`."""
    simulated: bool
    available: bool
    """A worker serves this provider: it has had an answer in the last hour. Jobs can run there."""
    gpu: str | None
    gpus: int
    gpu_memory_mib: int
    vcpus: int | None
    memory_mib: int | None
    interruption: str | None
    """How often spot machines of this type were interrupted in a month, such as 5-10%."""
    cluster: bool = False
    """Such machines can be placed close together (resources.placement); false also where the provider doesn't say."""
    efa: bool = False
    """And then have EFA."""


class NotOffered(Resource):
    """Types of machines, or all types in some regions, that the built-in price list of a provider leaves out."""

    provider: str
    types: list[str]
    regions: list[str]
    reason: Reason


class OfferList(Resource):
    offers: list[Offer]
    """The cheapest first."""
    no_offer: Reason | None
    """Why there are none such."""
    not_offered: list[NotOffered]
    quotas: list[Reason]
    """Of the providers' accounts: what may run at once of these offers."""


class LoginRequest(RequestBody):
    """Body of POST /v1/session: an API key, or the code of a one-time login link."""

    key: str | None = Field(default=None, max_length=200)
    code: str | None = Field(default=None, max_length=200)


class Me(Resource):
    user: str
    team: str
    role: Role
    scopes: list[Scope] | None = None
    """What this key, or the browser that it signed in, may do of what the role allows; None: all of it."""
    csrf: str | None = None
    """Send as X-CSRF-Token on unsafe methods when signed in by cookie."""
    version: str
    cursor: str
    """Position in the event feed: a stream opened with this cursor misses nothing that is read from now on."""


class Key(Resource):
    """An API key, without its secret."""

    id: UUID
    kind: KeyKind
    name: str = ""
    scopes: list[Scope] | None = None
    """None: all."""
    job: UUID | None = None
    """Of a job key: the only job that it reaches."""
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    """When a request was last made with it, to within ten minutes. None: never."""


class KeyList(Resource):
    keys: list[Key]


class CreateKeyRequest(RequestBody):
    """Body of POST /v1/keys.

    scopes  None: those of the key that makes it; of a job key: read and jobs
    job     of a job key, and of no other
    """

    kind: KeyKind = "pat"
    name: str = Field(default="", max_length=100)
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=20)] | None = None
    job: UUID | None = Field(default=None, strict=False)
    expires_in_days: int | None = Field(default=90, ge=1, le=3650)


class CreatedKey(Resource):
    """A new API key. The secret is returned only here."""

    key: Key
    secret: str


class LoginCode(Resource):
    code: str
    """Valid once, for ten minutes, at `/login?code=…`."""


class Login(Resource):
    """A browser that is signed in."""

    id: UUID
    created_at: datetime
    expires_at: datetime
    address: str
    """Where it signed in from."""
    browser: str
    """What it calls itself."""
    current: bool
    """It is the one that asks."""


class LoginList(Resource):
    logins: list[Login]


class Member(Resource):
    id: UUID
    user: str
    role: Role
    keys: int
    """Their valid API keys in the team."""


class MemberList(Resource):
    members: list[Member]


class SetRoleRequest(RequestBody):
    role: Role


class Team(Resource):
    id: UUID
    name: str
    role: Role
    """The caller's."""
    members: int
    current: bool
    """The one that this key acts in."""


class TeamList(Resource):
    teams: list[Team]


class CreateTeamRequest(RequestBody):
    """Body of POST /v1/teams."""

    name: str = Field(max_length=200)


class CreatedTeam(Resource):
    """A new team, and a key of its admin's. The secret is returned only here."""

    team: Team
    key: Key
    secret: str


class Invitation(Resource):
    """A link by which one person joins the team, without its secret."""

    id: UUID
    user: str | None
    """Of a class list: whom it signs in. None: whoever takes it chooses a name."""
    role: Role
    limit: Money | None
    """What the new member's own budget begins with; None: no limit of their own."""
    made_by: str
    created_at: datetime
    expires_at: datetime
    state: Literal["open", "used", "expired", "revoked"]


class InvitationList(Resource):
    invitations: list[Invitation]


class CreateInvitationRequest(RequestBody):
    """Body of POST /v1/invitations. `limit`: decimal dollars of the new member's own budget."""

    role: Role = "member"
    limit: str | None = Field(default=None, max_length=100)
    expires_in_days: int = Field(default=14, ge=1, le=366)


class CreatedInvitation(Resource):
    invitation: Invitation
    code: str
    """Returned only here. Valid once, at `/login?invite=…`."""


class ReadInvitationRequest(RequestBody):
    """Body of POST /v1/invitations:read."""

    code: str = Field(max_length=200)


class OpenedInvitation(Resource):
    """What whoever has an invitation's link sees of it before they take it."""

    team: str
    role: Role
    user: str | None
    """Whom it signs in; None: whoever takes it chooses a name."""
    made_by: str
    expires_at: datetime


class TakeInvitationRequest(RequestBody):
    """Body of POST /v1/invitations:take."""

    code: str = Field(max_length=200)
    name: str | None = Field(default=None, max_length=200)
    """Of the new user. Of an invitation from a class list: theirs, or None."""


class ImportMembersRequest(RequestBody):
    """Body of POST /v1/members:import."""

    csv: str = Field(max_length=200_000)
    """Columns name, role, limit; the first line names those that there are."""
    expires_in_days: int = Field(default=14, ge=1, le=366)


class ImportedMembers(Resource):
    invitations: list[CreatedInvitation]
    """One for each member, in the order of the list."""


class AuditEntry(Resource):
    """Who did what, on what, when and from where."""

    id: str
    at: datetime
    actor: str
    action: str
    """The operation, as the OpenAPI document names it."""
    subject: str
    detail: dict[str, Any]
    address: str
    """Empty for commands of the service's operator."""
    credential: str


class AuditPage(Resource):
    entries: list[AuditEntry]
    """The newest first."""
    next_cursor: str | None = None


class AuditFault(Resource):
    entry: int
    """Its number in the chain, from 1; 0: of the seals."""
    text: str


class AuditVerification(Resource):
    """What a look at the whole audit log found."""

    intact: bool
    """No fault in what is sealed and chained."""
    chained: int
    """Entries in the chain."""
    sealed: int
    """Of these, how many the newest seal in the object store covers."""
    faults: list[AuditFault]
    fault_count: int
    """Of all; the first ones are listed."""
    unsealed: list[AuditEntry]
    """Entries that no seal covers yet, the oldest first, at most 100: a change of these can't be found."""
    unsealed_count: int


class PreemptRequest(RequestBody):
    """Body of POST /v1/machines/{id}:preempt (admin, simulated providers only)."""

    notice_s: Annotated[float, BeforeValidator(_from_exact), Field(ge=0, le=600)] = 120


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


class PointsMessage(Resource):
    """SSE event `points`: new metric points of one job, as reported."""

    job: UUID
    generation: int
    curves: list[Curve]


class LogsMessage(Resource):
    """SSE event `logs`: new log lines of one job."""

    job: UUID
    lines: list[LogLine]

# SPDX-License-Identifier: Apache-2.0
"""The tables. Rows are storage only; the modules beside this one have the rules that change them.

Money, steps and times are 64-bit integers: micro-dollars, optimizer steps, microseconds UTC. Unit prices are decimal
text, because SQLite has no exact decimal. `zone` is '' (the whole region) instead of NULL, so that unique keys apply.
`WRITE_ORDER` is the order in which a transaction may write tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    Text,
    TypeDecorator,
    Uuid,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shoestring_core.decide.queue import MAX_WEIGHT, MIN_WEIGHT
from shoestring_core.states import (
    MACHINE_TRANSITIONS,
    AttemptState,
    DesiredState,
    GenerationState,
    JobState,
    MachineState,
    final_states,
)

# One order for every transaction: opposite orders deadlock. Rows of one kind by id; accounts leaves first.
WRITE_ORDER = (
    "scheduler", "jobs", "deadlines", "attempts", "generations", "members", "checkpoints", "machines", "holds",
    "commitments", "accounts", "events",
)  # fmt: skip

Json = JSON().with_variant(JSONB(), "postgresql")

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def storable(text: str) -> str:
    """The text as both databases can hold it: NUL and lone surrogates become U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


class StorableText(TypeDecorator[str]):
    """Text from machines and users, so that no row is refused for a character in it."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, _: Dialect) -> str | None:
        return None if value is None else storable(value)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        int: BigInteger,
        str: StorableText,
        bytes: LargeBinary,
        bool: Boolean,
        UUID: Uuid,
        dict[str, Any]: Json,
        list[Any]: Json,
    }


def _one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    """The column holds nothing but a value of the enum."""
    return CheckConstraint(f"{column} IN ({_quoted(values)})", name=column)


def _quoted(values: Iterable[str]) -> str:
    return ",".join(f"'{value}'" for value in values)


_ALIVE = f"state NOT IN ({_quoted(final_states(MACHINE_TRANSITIONS))})"


# --- identity -----------------------------------------------------------------------------------------------


class TeamRow(Base):
    __tablename__ = "teams"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    feed_seq: Mapped[int] = mapped_column(default=0)
    schedule_changes: Mapped[int] = mapped_column(default=0)
    """Counts the events that a schedule may depend on, which is why it is made again."""


class UserRow(Base):
    __tablename__ = "users"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[int]


class MembershipRow(Base):
    __tablename__ = "memberships"
    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id"), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), primary_key=True)
    role: Mapped[str]
    __table_args__ = (CheckConstraint("role IN ('viewer','member','lead','admin')", name="role"),)


class KeyRow(Base):
    """API keys (pat, svc, job) and one-time login codes (login). Only the hash of a secret is stored.

    scopes      names of decide.access.Scope, with spaces between; None: all
    job         of a job key: the one job that it reaches
    made_with   the key that its maker was authenticated by, directly or in a session; None: made by the operator
    expires_at  no key or session made with it ends later; a login code can be used for a few minutes only
    """

    __tablename__ = "keys"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id"))
    name: Mapped[str] = mapped_column(default="", server_default="")
    """What it is for, in its maker's words."""
    scopes: Mapped[str | None]
    job: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[int]
    made_with: Mapped[UUID | None] = mapped_column(ForeignKey("keys.id"))
    expires_at: Mapped[int | None]
    revoked_at: Mapped[int | None]
    last_used_at: Mapped[int | None]
    """By a request with its secret, to within `identity.USE_NOTED_EVERY`."""
    __table_args__ = (
        CheckConstraint("kind IN ('pat','svc','job','login')", name="kind"),
        CheckConstraint("(kind = 'job') = (job IS NOT NULL)", name="job_keys_name_a_job"),
    )


class SessionRow(Base):
    """A browser session. `scopes` and `made_with`: as for keys."""

    __tablename__ = "sessions"
    hash: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id"))
    made_with: Mapped[UUID | None] = mapped_column(ForeignKey("keys.id"))
    scopes: Mapped[str | None]
    created_at: Mapped[int]
    address: Mapped[str] = mapped_column(default="", server_default="")
    """Where the browser signed in from."""
    browser: Mapped[str] = mapped_column(default="", server_default="")
    """What it calls itself."""
    expires_at: Mapped[int]
    csrf: Mapped[str]


class IdempotencyRow(Base):
    """The response to the first request with an Idempotency-Key. `status` NULL: still running."""

    __tablename__ = "idempotency"
    principal: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_sha: Mapped[str]
    status: Mapped[int | None]
    body: Mapped[str | None]
    begun_at: Mapped[int]
    __table_args__ = (Index(None, "begun_at"),)


# --- jobs -------------------------------------------------------------------------------------------------


class JobRow(Base):
    __tablename__ = "jobs"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id"))
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    name: Mapped[str]
    spec: Mapped[dict[str, Any]]
    sizing: Mapped[dict[str, Any] | None]
    """decide.sizing.SizingRecord: why it runs on its machines. None: the spec named the machines."""
    quote: Mapped[dict[str, Any] | None]
    """decide.quotes.QuotedOffer that it would have got when it was submitted. None: no run said what it takes."""
    state: Mapped[str]
    desired_state: Mapped[str] = mapped_column(default="run")
    stop_reason: Mapped[str] = mapped_column(default="")
    """Why `desired_state` is pause or stop: user | budget | time_limit | goal; why it stops to be queued: eviction."""
    wait_reason: Mapped[str | None]
    """None in the queue: no schedule has looked at it yet, because none behind those that it looked at could start."""
    wait_detail: Mapped[dict[str, Any] | None]
    """A reason of `wording`, {code, facts}, as every JSON column of reasons. Of a job that runs: what will stop it."""
    end_reason: Mapped[str | None]
    end_detail: Mapped[dict[str, Any] | None]
    attempt: Mapped[int] = mapped_column(default=0)
    generation: Mapped[int] = mapped_column(default=0)
    checkpoint: Mapped[UUID | None]
    init_checkpoint: Mapped[UUID | None]
    """The other job's checkpoint that its weights, and those of its retries, are initialized from."""
    skipped_step_spans: Mapped[list[Any] | None]
    """Spans of steps, [first, last], that it skips because of NaN or Inf."""
    steps_total: Mapped[int | None]
    """Of the run as its ranks began it; once its goal has ended it early, those that it did."""
    last_step: Mapped[int] = mapped_column(default=0)
    last_epoch_milli: Mapped[int | None]
    latest: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Newest value of each metric, as the current generation reported it; NaN and ±Infinity as text."""
    log_hour: Mapped[int] = mapped_column(default=0)
    log_bytes: Mapped[int] = mapped_column(default=0)
    """Log bytes stored in `log_hour` (hours since 1970), for the quota."""
    log_truncated: Mapped[bool] = mapped_column(default=False)
    """The quota was reached: some of the log is missing."""
    result: Mapped[dict[str, Any] | None]
    retried_from: Mapped[UUID | None]
    created_at: Mapped[int]
    queued_at: Mapped[int]
    started_at: Mapped[int | None]
    first_step_at: Mapped[int | None]
    ended_at: Mapped[int | None]
    settled_at: Mapped[int | None]
    __table_args__ = (
        CheckConstraint("(state = 'ended') = (end_reason IS NOT NULL)", name="ended_has_reason"),
        _one_of("state", JobState),
        _one_of("desired_state", DesiredState),
        Index(None, "team_id", "created_at", "id"),
        Index(
            "ix_jobs_trained", "team_id", "created_at", "id",
            sqlite_where=text("first_step_at IS NOT NULL"), postgresql_where=text("first_step_at IS NOT NULL"),
        ),
        Index(None, "state", "settled_at"),
        Index("ix_jobs_queue", "state", "team_id", "user_id", "queued_at", "id", "desired_state"),
        Index(
            None, "wait_reason",
            sqlite_where=text("wait_reason IS NOT NULL"), postgresql_where=text("wait_reason IS NOT NULL"),
        ),
    )  # fmt: skip


class DeadlineRow(Base):
    """How a job with limits.deadline is to keep it, and what was decided last."""

    __tablename__ = "deadlines"
    job: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    plan: Mapped[dict[str, Any]]
    """decide.deadlines.DeadlinePlan"""
    market: Mapped[str] = mapped_column(default="wait")
    """decide.deadlines.DeadlineDecision, of the last decision, as `zone` and `because`."""
    zone: Mapped[str] = mapped_column(default="")
    because: Mapped[str] = mapped_column(default="policy")
    inputs: Mapped[dict[str, Any] | None]
    """decide.deadlines.DeadlineCase, of which it was made. None: nothing was decided yet."""
    changes: Mapped[int] = mapped_column(default=0)
    """Counts the decisions that differ from the one before: a schedule depends on them."""
    next_at: Mapped[int | None]
    """When it is decided next (µs UTC); None: never more."""
    __table_args__ = (
        CheckConstraint("market IN ('wait','spot','on_demand')", name="market"),
        Index(None, "next_at"),
    )


class AttemptRow(Base):
    __tablename__ = "attempts"
    job: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]
    reason: Mapped[str | None]
    trained: Mapped[bool] = mapped_column(default=False)
    """A step ran in it: only such attempts count against retry.max, if they were interrupted."""
    plan: Mapped[dict[str, Any]]
    plan_version: Mapped[int]
    """The scheduler's, of the plan that opened it."""
    eviction: Mapped[dict[str, Any] | None]
    """decide.preemption.EvictionInputs, if it ended to make room."""
    market_change: Mapped[dict[str, Any] | None]
    """decide.deadlines.DeadlineCase, if it ended to go on elsewhere, to keep a deadline."""
    opened_at: Mapped[int]
    closed_at: Mapped[int | None]
    __table_args__ = (
        _one_of("state", AttemptState),
        Index(None, "state"),
        Index(
            "uq_attempts_job_open", "job", unique=True,
            sqlite_where=text("state = 'open'"), postgresql_where=text("state = 'open'"),
        ),
    )  # fmt: skip


class MachineRow(Base):
    """One launch intent and its outcome. The id is the provider's idempotency token."""

    __tablename__ = "machines"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    job: Mapped[UUID]
    attempt: Mapped[int]
    ordinal: Mapped[int]
    slot: Mapped[int]
    provider: Mapped[str]
    region: Mapped[str]
    zone: Mapped[str]
    type: Mapped[str]
    market: Mapped[str]
    price: Mapped[str]
    """Decimal dollars per hour at launch."""
    on_demand_price: Mapped[str]
    simulated: Mapped[bool]
    """Nobody is charged these prices."""
    billing: Mapped[dict[str, Any]]
    """decide.billing.BillingRules at launch."""
    offered_hardware: Mapped[dict[str, Any] | None]
    """decide.offers.Hardware of its type; None: not known."""
    launch_request: Mapped[dict[str, Any]]
    """The exact request: a repeated launch sends the same bytes."""
    provider_id: Mapped[str | None]
    state: Mapped[str]
    call_deadline: Mapped[int | None]
    session_hash: Mapped[str | None]
    image: Mapped[str | None]
    """Id of the image that it boots, as the provider reports it; None: not known."""
    driver: Mapped[str | None]
    """Version of NVIDIA's driver that its user data found; None: not known."""
    hello_at: Mapped[int | None]
    """When its user data first reached the service."""
    boot_failure: Mapped[dict[str, Any] | None]
    """wire.BootReport.failure, phase and message of what failed in its boot."""
    registered_at: Mapped[int | None]
    address: Mapped[str | None]
    hardware: Mapped[dict[str, Any] | None]
    acked_seq: Mapped[int] = mapped_column(default=0)
    last_report_at: Mapped[int | None]
    alive_until: Mapped[int | None]
    funded_until: Mapped[int | None]
    notice_at: Mapped[int | None]
    left_until: Mapped[int | None]
    """Its agent says that its work is over, and until then it is left to its provider, which makes it free by
    interrupting it (decide.billing.free_if_left_until). None: it is not."""
    launched_at: Mapped[int | None]
    ended_at: Mapped[int | None]
    pending_until: Mapped[int | None]
    """When the provider last said that it doesn't run yet."""
    stopping_at: Mapped[int | None]
    """When the provider first said that it ends by itself."""
    price_changes: Mapped[list[Any] | None]
    """decide.billing.Evidence.price_changes"""
    end_cause: Mapped[str | None]
    end_evidence: Mapped[str | None]
    """provider | inferred"""
    clock_shift: Mapped[int] = mapped_column(default=0)
    """decide.billing.Evidence.clock_shift"""
    refusal: Mapped[str | None]
    """decide.refusals.RefusalKind, of launch or interruption; or 'unknown': a launch call ended without an answer."""
    refusal_text: Mapped[str | None]
    """The provider's message; or of an unknown outcome, the problem that somebody has to solve."""
    refused_at: Mapped[int | None]
    billed_at: Mapped[int | None]
    created_at: Mapped[int]
    __table_args__ = (
        ForeignKeyConstraint(["job", "attempt"], ["attempts.job", "attempts.number"]),
        _one_of("state", MachineState),
        CheckConstraint("state <> 'terminated' OR ended_at IS NOT NULL", name="terminated_has_end"),
        Index("uq_machines_job_attempt_ordinal", "job", "attempt", "ordinal", unique=True),
        Index(
            "uq_machines_slot_alive", "job", "attempt", "slot", unique=True,
            sqlite_where=text(_ALIVE), postgresql_where=text(_ALIVE),
        ),
        Index("uq_machines_provider_id", "provider", "region", "provider_id", unique=True),
        Index(None, "refused_at"),
        Index(None, "state", "billed_at"),
    )  # fmt: skip


class GenerationRow(Base):
    __tablename__ = "generations"
    job: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    state: Mapped[str]
    world_size: Mapped[int]
    master: Mapped[str | None]
    """host:port of node rank 0, once that has reported a free port."""
    start_checkpoint: Mapped[UUID | None]
    start_step: Mapped[int]
    last_step: Mapped[int | None]
    """Last step it reported, kept or lost."""
    opened_at: Mapped[int]
    formed_at: Mapped[int | None]
    first_step_at: Mapped[int | None]
    ended_at: Mapped[int | None]
    end_reason: Mapped[dict[str, Any] | None]
    __table_args__ = (
        ForeignKeyConstraint(["job", "attempt"], ["attempts.job", "attempts.number"]),
        _one_of("state", GenerationState),
        Index(
            "uq_generations_job_current", "job", unique=True,
            sqlite_where=text("state <> 'ended'"), postgresql_where=text("state <> 'ended'"),
        ),
    )  # fmt: skip


class MemberRow(Base):
    """A machine as member of a generation."""

    __tablename__ = "members"
    job: Mapped[UUID] = mapped_column(primary_key=True)
    generation: Mapped[int] = mapped_column(primary_key=True)
    node_rank: Mapped[int] = mapped_column(primary_key=True)
    machine: Mapped[UUID] = mapped_column(ForeignKey("machines.id"))
    nproc: Mapped[int]
    port: Mapped[int | None]
    ready_at: Mapped[int | None]
    exited_at: Mapped[int | None]
    exits: Mapped[list[Any] | None]
    """wire.RankExit of each rank, as JSON."""
    __table_args__ = (
        ForeignKeyConstraint(["job", "generation"], ["generations.job", "generations.number"]),
        Index("uq_members_machine", "job", "generation", "machine", unique=True),
    )


class CheckpointRow(Base):
    """A complete checkpoint with verified hashes. Only this row points to its write-once objects."""

    __tablename__ = "checkpoints"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    job: Mapped[UUID]
    generation: Mapped[int]
    step: Mapped[int]
    final: Mapped[bool] = mapped_column(default=False)
    object_key: Mapped[str] = mapped_column(unique=True)
    """Prefix of the pair: `<key>/data` and `<key>/manifest.json`."""
    manifest_sha: Mapped[str]
    bytes: Mapped[int]
    save_ms: Mapped[int | None]
    """From a request to stop until the object store has it; None: not measured."""
    stored_at: Mapped[int]
    __table_args__ = (
        ForeignKeyConstraint(["job", "generation"], ["generations.job", "generations.number"]),
        Index("uq_checkpoints_step", "job", "generation", "step", unique=True),
    )


# --- what machines report ---------------------------------------------------------------------------------


class SeriesRow(Base):
    __tablename__ = "series"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    job: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"))
    name: Mapped[str]
    __table_args__ = (Index("uq_series_job_name", "job", "name", unique=True),)


class MetricChunkRow(Base):
    """Points of one series from one batch, as three columns: int64 steps, float64 unix seconds, float64 values,
    little-endian. A step may repeat across chunks; its generation decides which value counts.

    `source` is a machine, or whatever else numbers batches of points of its own."""

    __tablename__ = "metric_chunks"
    series: Mapped[UUID] = mapped_column(ForeignKey("series.id"), primary_key=True)
    source: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    generation: Mapped[int]
    first_step: Mapped[int]
    last_step: Mapped[int]
    steps: Mapped[bytes]
    times: Mapped[bytes]
    values: Mapped[bytes]
    __table_args__ = (Index(None, "source", "seq"),)


class LogChunkRow(Base):
    __tablename__ = "log_chunks"
    machine: Mapped[UUID] = mapped_column(ForeignKey("machines.id"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    byte_offset: Mapped[int] = mapped_column(primary_key=True)
    seq: Mapped[int]
    received_at: Mapped[int]
    """Lines of several ranks are read in this order."""
    data: Mapped[bytes]
    __table_args__ = (Index(None, "machine", "seq"),)


class EventRow(Base):
    """The feed of a team, without gaps: `seq` is taken from teams.feed_seq at the end of each transaction."""

    __tablename__ = "events"
    team: Mapped[UUID] = mapped_column(ForeignKey("teams.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[UUID | None]
    attempt: Mapped[int | None]
    generation: Mapped[int | None]
    kind: Mapped[str]
    actor: Mapped[str]
    reason: Mapped[dict[str, Any] | None]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    at: Mapped[int]
    __table_args__ = (Index(None, "job", "seq"),)


# --- money ------------------------------------------------------------------------------------------------


class AccountRow(Base):
    """organization > team > member > job, and the counterparties of what is spent: cash and overrun."""

    __tablename__ = "accounts"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    owner: Mapped[str]
    period: Mapped[str] = mapped_column(default="")
    parent: Mapped[UUID | None] = mapped_column(ForeignKey("accounts.id"))
    level: Mapped[int]
    """0 = organization … 3 = job; cash and overrun have 9. Transactions write the highest level first."""
    limit_micro: Mapped[int | None]
    posted: Mapped[int] = mapped_column(default=0)
    held: Mapped[int] = mapped_column(default=0)
    overdraft: Mapped[int] = mapped_column(default=0)
    weight: Mapped[int] = mapped_column(default=1)
    """Of a team or member: how its share of the dollars compares with that of the others."""
    guaranteed_rate: Mapped[int] = mapped_column(default=0, server_default="0")
    """Of a team: micro-dollars an hour that its machines may cost before it borrows from other teams."""
    max_jobs: Mapped[int | None]
    """Of a team or member: how many of its jobs may run at once, and `max_gpus` how many GPUs they may have."""
    max_gpus: Mapped[int | None]
    recent: Mapped[int] = mapped_column(default=0)
    """Of a team or member: what it had spent at `recent_at`, each amount halved with every half-life since."""
    recent_at: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column(default=0)
    """Counts changes of the limit: the ETag of a budget."""
    soft_lines: Mapped[list[Any] | None]
    """Percent of the limit, rising, at which spenders are warned; None: decide.soft_lines.DEFAULT."""
    soft_line_reached: Mapped[int] = mapped_column(default=0, server_default="0")
    """The highest of them that was reached since the limit moved; 0: none."""
    forecast_told: Mapped[bool] = mapped_column(default=False, server_default=false())
    """That the limit won't last its period was told since it moved."""
    period_base: Mapped[int] = mapped_column(default=0, server_default="0")
    """What periods before this one used of the limit, which counts from the beginning of the account."""
    carried: Mapped[int] = mapped_column(default=0, server_default="0")
    """What is still held of what was held at the last border: part of `held`, and of `period_base`."""
    __table_args__ = (
        CheckConstraint("kind IN ('org','team','member','job','cash','overrun')", name="kind"),
        CheckConstraint("held >= 0", name="held_not_negative"),
        CheckConstraint("overdraft >= 0", name="overdraft_not_negative"),
        CheckConstraint(f"{MIN_WEIGHT} <= weight AND weight <= {MAX_WEIGHT}", name="weight_in_bounds"),
        CheckConstraint("limit_micro IS NULL OR posted + held <= limit_micro + overdraft", name="never_overspent"),
        Index("uq_accounts_owner", "kind", "owner", "period", unique=True),
        Index(None, "overdraft", sqlite_where=text("overdraft > 0"), postgresql_where=text("overdraft > 0")),
    )


class CommitmentRow(Base):
    """Money of a job that is set aside for its machines to come: the first that their holds are made of, and what they
    don't spend comes back to it."""

    __tablename__ = "commitments"
    account: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    amount: Mapped[int]
    __table_args__ = (CheckConstraint("amount >= 0", name="amount"),)


class HoldRow(Base):
    """Money set aside for a machine until `funded_until` plus the time it takes to end."""

    __tablename__ = "holds"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    machine: Mapped[UUID] = mapped_column(ForeignKey("machines.id"))
    number: Mapped[int]
    """Counts the holds of a machine from 1; only the newest can be open."""
    account: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    rate_cap: Mapped[str]
    """Decimal dollars per hour that can't be exceeded."""
    amount: Mapped[int]
    consumed: Mapped[int] = mapped_column(default=0)
    funded_until: Mapped[int | None]
    state: Mapped[str]
    __table_args__ = (
        CheckConstraint("0 <= consumed AND consumed <= amount", name="consumed_within"),
        CheckConstraint("state IN ('open','closed')", name="state"),
        Index("uq_holds_machine_number", "machine", "number", unique=True),
        Index(
            "uq_holds_machine_open", "machine", unique=True,
            sqlite_where=text("state = 'open'"), postgresql_where=text("state = 'open'"),
        ),
    )  # fmt: skip


class TransferRow(Base):
    """One immutable line of the ledger; triggers refuse UPDATE and DELETE. Corrections are new rows."""

    __tablename__ = "transfers"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    debit_account: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    credit_account: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    amount: Mapped[int]
    hold: Mapped[UUID | None]
    machine: Mapped[UUID | None]
    line: Mapped[str | None]
    increment: Mapped[int | None]
    at: Mapped[int]
    actor: Mapped[str]
    reason: Mapped[dict[str, Any]]
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount_positive"),
        CheckConstraint("debit_account <> credit_account", name="two_accounts"),
        Index(
            "uq_transfers_increment", "machine", "line", "increment", unique=True,
            sqlite_where=text("increment IS NOT NULL"), postgresql_where=text("increment IS NOT NULL"),
        ),
        Index(None, "debit_account"),
        Index(None, "at"),
    )  # fmt: skip


class BudgetPeriodRow(Base):
    """The period that a budget is in, which rolls over at `ends_at`. A budget without one is one-off."""

    __tablename__ = "budget_periods"
    account: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    kind: Mapped[str]
    amount: Mapped[int]
    """What each month begins with."""
    time_zone: Mapped[str]
    starts_at: Mapped[int]
    ends_at: Mapped[int]
    """The next border: the end; of a period that has not begun, its beginning."""
    then_ends_at: Mapped[int | None]
    """Of a period that has not begun: its end."""
    closed: Mapped[bool] = mapped_column(default=False)
    """A term that has ended."""
    rollover: Mapped[str]
    rollover_cap: Mapped[int | None]
    """The most that carries over; None: all that is unspent."""
    carried_over: Mapped[int] = mapped_column(default=0)
    """What the last period left to this one."""
    __table_args__ = (
        CheckConstraint("kind IN ('month','term')", name="kind"),
        CheckConstraint("rollover IN ('none','unspent')", name="rollover"),
        CheckConstraint("NOT closed OR kind = 'term'", name="months_go_on"),
        Index(None, "ends_at"),
    )


class CarriedHoldRow(Base):
    """What was held at the last border of an account, and is neither spent nor given back yet."""

    __tablename__ = "carried_holds"
    account: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    hold: Mapped[UUID] = mapped_column(ForeignKey("holds.id"), primary_key=True)
    rest: Mapped[int]
    __table_args__ = (CheckConstraint("rest >= 0", name="rest_not_negative"),)


class LimitChangeRow(Base):
    """One immutable change of what an account may spend; triggers refuse UPDATE and DELETE.

    limit_before, limit_after  of the period before and after it: what may be spent beyond `base`
    """

    __tablename__ = "limit_changes"
    account: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    """The account's version after it."""
    kind: Mapped[str]
    limit_before: Mapped[int | None]
    limit_after: Mapped[int | None]
    base: Mapped[int] = mapped_column(default=0, server_default="0")
    """The account's period_base after it."""
    counterpart: Mapped[UUID | None] = mapped_column(ForeignKey("accounts.id"))
    """Of a transfer: the account on its other side, which has a row with the opposite change."""
    at: Mapped[int]
    actor: Mapped[str]
    reason: Mapped[dict[str, Any]]
    __table_args__ = (
        CheckConstraint("kind IN ('adjusted','granted','transferred','rolled_over')", name="kind"),
        CheckConstraint("(kind = 'transferred') = (counterpart IS NOT NULL)", name="transfers_have_two_sides"),
        CheckConstraint("kind <> 'granted' OR limit_after > limit_before", name="grants_raise"),
    )


class BudgetRequestRow(Base):
    """A member's request for more dollars, decided once. Nobody may decide an open one after `expires_at`."""

    __tablename__ = "budget_requests"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    team: Mapped[UUID] = mapped_column(ForeignKey("teams.id"))
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    account: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    amount: Mapped[int]
    why: Mapped[str]
    state: Mapped[str]
    created_at: Mapped[int]
    expires_at: Mapped[int]
    decided_at: Mapped[int | None]
    decided_by: Mapped[str | None]
    note: Mapped[str] = mapped_column(default="")
    """What was said with the decision."""
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount_positive"),
        CheckConstraint("state IN ('open','approved','denied')", name="state"),
        CheckConstraint("(state = 'open') = (decided_at IS NULL)", name="decided_once"),
        Index(None, "team", "created_at"),
    )


class PriceRow(Base):
    __tablename__ = "prices"
    provider: Mapped[str] = mapped_column(primary_key=True)
    region: Mapped[str] = mapped_column(primary_key=True)
    zone: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(primary_key=True)
    market: Mapped[str] = mapped_column(primary_key=True)
    valid_from: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[str]
    unit: Mapped[str]
    source: Mapped[str]
    fetched_at: Mapped[int]
    simulated: Mapped[bool]


class ProviderRow(Base):
    """A provider that a worker serves, for all that don't call it themselves."""

    __tablename__ = "providers"
    name: Mapped[str] = mapped_column(primary_key=True)
    timeouts: Mapped[dict[str, Any]]
    """decide.timeouts.Timeouts, as JSON."""
    answered_at: Mapped[int]
    """When it last said what it offers; 0: never."""
    offers_version: Mapped[int]
    """Counts its answers: offers that were read at this version needn't be read again."""


class LeakRow(Base):
    """Something that ran at a provider without a row: it was terminated or deleted as soon as it was found."""

    __tablename__ = "leaks"
    provider: Mapped[str] = mapped_column(primary_key=True)
    region: Mapped[str] = mapped_column(primary_key=True)
    provider_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    """machine | volume | network_interface | spot_request | address"""
    hourly: Mapped[str]
    """Dollars per hour at most, as a decimal."""
    since: Mapped[int]
    found_at: Mapped[int]
    ended_at: Mapped[int | None]


class OfferRow(Base):
    """An offer of a provider (decide.offers.Offer), as of `ProviderRow.answered_at`."""

    __tablename__ = "offers"
    provider: Mapped[str] = mapped_column(primary_key=True)
    region: Mapped[str] = mapped_column(primary_key=True)
    zone: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(primary_key=True)
    market: Mapped[str] = mapped_column(primary_key=True)
    price: Mapped[str]
    on_demand_price: Mapped[str]
    slots: Mapped[int | None]
    source: Mapped[str]
    simulated: Mapped[bool]
    hardware: Mapped[dict[str, Any] | None]
    interruption: Mapped[str | None]
    billing: Mapped[dict[str, Any]]
    quota: Mapped[dict[str, Any] | None]
    disk: Mapped[dict[str, Any] | None]
    data_role: Mapped[str | None]


# --- the service itself -----------------------------------------------------------------------------------


class SchedulerRow(Base):
    """One row. A plan is applied only if no other was applied since it was read: each raises the version.

    recent_half_life  after so many µs, a dollar that was spent counts half in the order of the queue
    """

    __tablename__ = "scheduler"
    id: Mapped[int] = mapped_column(primary_key=True)
    plan_version: Mapped[int]
    recent_half_life: Mapped[int]
    __table_args__ = (CheckConstraint("id = 1", name="single"),)


class ServiceRow(Base):
    """Since when a service answers without a gap: leases of machines don't expire while our own API is down."""

    __tablename__ = "services"
    name: Mapped[str] = mapped_column(primary_key=True)
    up_since: Mapped[int]
    last_heartbeat_at: Mapped[int]


# --- the audit log ----------------------------------------------------------------------------------------


class AuditEntryRow(Base):
    """One entry of a team's audit log (decide.audit.Entry); triggers refuse UPDATE and DELETE.

    Ids are text, so that a hash covers what is stored, byte for byte.
    """

    __tablename__ = "audit_entries"
    id: Mapped[str] = mapped_column(primary_key=True)
    team: Mapped[str]
    at: Mapped[int]
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[str]
    address: Mapped[str]
    credential: Mapped[str]
    __table_args__ = (Index(None, "team", "id"),)


class AuditLinkRow(Base):
    """The place of an entry in its team's chain. Triggers as above."""

    __tablename__ = "audit_links"
    team: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    entry: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str]


class AuditSealRow(Base):
    """A batch of the chain that ended, and was or is to be sealed (decide.audit.Seal). Triggers as above."""

    __tablename__ = "audit_seals"
    team: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    entries: Mapped[int]
    hash: Mapped[str]
    at: Mapped[int]


class InvitationRow(Base):
    """A link by which one person becomes a member of a team, once. Only the hash of its code is stored.

    user_id      whom it signs in, who is a member already; None: the person who accepts it chooses a name
    limit_micro  what the new member's own budget begins with; None: no limit of their own
    """

    __tablename__ = "invitations"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(unique=True)
    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id"))
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    role: Mapped[str]
    limit_micro: Mapped[int | None]
    made_by: Mapped[str]
    created_at: Mapped[int]
    expires_at: Mapped[int]
    used_at: Mapped[int | None]
    used_by: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    revoked_at: Mapped[int | None]
    __table_args__ = (
        CheckConstraint("role IN ('viewer','member','lead','admin')", name="role"),
        CheckConstraint("(used_at IS NULL) = (used_by IS NULL)", name="used_by_somebody"),
        Index(None, "team_id", "created_at"),
    )

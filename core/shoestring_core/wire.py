# SPDX-License-Identifier: Apache-2.0
"""The agent protocol: what a rented machine and the service say to each other under `/agent/v1`.

Four calls, JSON both ways, `Authorization: Bearer <machine id>.<session secret>` on all but the first:

    POST /agent/v1/redeem        Redeem      -> Reply   boot token for a session of the agent's own
    POST /agent/v1/report        Report      -> Reply   heartbeat, one numbered batch, the state of this machine's ranks
    GET  /agent/v1/orders?after=ETAG         -> Reply   held up to 25 s, until the order's etag differs
    POST /agent/v1/checkpoints   Commit      -> Committed

Objects move by signed URLs that the service hands out (`Uploads`, `Resume`), never through these calls.
A repeated call with the same content changes nothing. Errors are problem+json with the codes of `errors`.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

PROTOCOL = 1
ACCEPTED_PROTOCOLS = (1,)

HELD_GET_S = 25
"""How long the service holds GET orders before it answers with the same order."""

MAX_BATCH_BYTES = 1 << 20
"""A larger report is refused with `too-large`; the agent then sends an empty batch under its number (see `Batch`)."""

Count = Annotated[int, Field(ge=0, le=2**62)]
"""A number that both databases hold: a larger one is refused, not tried again for ever."""
Step = Count
Moment = Annotated[float, Field(ge=0, le=2**40)]
"""Unix seconds. NaN and infinity are no moments."""


class Message(BaseModel):
    # NaN and ±Infinity are legal metric values and travel as strings, because JSON has no word for them.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings", allow_inf_nan=True)


# --- from the agent ---------------------------------------------------------------------------------------


class Hardware(Message):
    cpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    gpus: list[str] = []


class Redeem(Message):
    """First word of an agent. The first `session` to arrive binds; the same again succeeds, another is refused."""

    protocol: int = PROTOCOL
    machine: UUID
    boot_token: str = Field(max_length=200)
    session: str = Field(min_length=32, max_length=200)
    address: str = Field(max_length=255)
    """Where this machine's peers reach it."""
    agent_version: str = Field(default="", max_length=80)
    hardware: Hardware = Hardware()


class Series(Message):
    """Points of one metric: three columns of equal length, steps not decreasing. Times are unix seconds."""

    name: str = Field(min_length=1, max_length=250)
    steps: list[Step] = Field(max_length=20_000)
    times: list[float] = Field(max_length=20_000)
    values: list[float] = Field(max_length=20_000)


class LogChunk(Message):
    """Raw bytes of one rank's log. `offset` counts bytes from the machine's start, across generations.

    rank -1 is the agent's own log and the launcher's.
    """

    rank: int = Field(ge=-1, le=100_000)
    offset: Count
    data_b64: str


class AgentEvent(Message):
    """Something that happened on the machine: started, overflow, notice, rebalance, rejected, log_quota, warning, …"""

    kind: str = Field(min_length=1, max_length=40)
    at: float
    step: Step | None = None
    data: dict[str, Any] = {}


class Batch(Message):
    """Numbered per machine from 1, without holes. Holds one generation (0: before the first).

    When the service refuses a batch for good (`too-large`, `invalid-request`), the agent keeps its payload in
    `rejected/` and sends the same number again, empty but for a `rejected` event, so that one poison batch never
    stops a healthy job.
    """

    seq: int = Field(ge=1)
    generation: Count
    points: list[Series] = Field(default=[], max_length=2_000)
    logs: list[LogChunk] = Field(default=[], max_length=2_000)
    events: list[AgentEvent] = Field(default=[], max_length=2_000)


class RankExit(Message):
    """How one rank ended. outcome `signal` = it left no word."""

    rank: int
    outcome: Literal["finished", "drained", "error", "signal"]
    step: Step | None = None
    at: float
    code: int | None = None
    kind: str | None = Field(default=None, max_length=40)
    """user_code | out_of_memory | nan | data | infrastructure"""
    since: Step | None = None
    """nan: the first step whose numbers broke."""
    message: str = Field(default="", max_length=20_000)


class Member(Message):
    """This machine's part in a generation.

    ready    no process of an older generation lives here; node rank 0 adds a port it just found free
    running  its ranks were started
    exited   its ranks are gone; `exits` says how. `drained` and `finished` only after the checkpoint is committed
             (rank 0's machine) or at once (the others, who write none).
    """

    generation: Count
    state: Literal["ready", "running", "exited"]
    port: int | None = Field(default=None, ge=1, le=65535)
    exits: list[RankExit] = []


class Report(Message):
    """Heartbeat. Every field but `protocol` may be absent."""

    protocol: int = PROTOCOL
    batch: Batch | None = None
    member: Member | None = None
    notice_at: Moment | None = None
    """Time at which the provider takes the machine, once it has said so."""


class Commit(Message):
    """A checkpoint whose data and manifest are uploaded. The pointer moves only if every batch up to `through_seq`
    is stored and `generation` is still the current one."""

    protocol: int = PROTOCOL
    generation: Count
    step: Step
    nonce: str = Field(max_length=64)
    manifest_sha256: str = Field(min_length=64, max_length=64)
    bytes: Count
    through_seq: Count
    reason: Literal["periodic", "order", "final"]
    result: dict[str, Any] | None = None
    """Metrics of a finished run (`reason` final): this commit ends the job."""


# --- from the service -------------------------------------------------------------------------------------


class Uploads(Message):
    """An unused pair of write-once URLs for the next checkpoint of `generation`."""

    generation: int
    nonce: str
    data_url: str
    manifest_url: str


class Resume(Message):
    """A checkpoint that a generation starts from."""

    step: Step
    data_url: str
    manifest_url: str
    manifest_sha256: str


class Run(Message):
    """How to start this machine's ranks: the arguments of torchrun and the task (task.json without local paths)."""

    node_rank: int
    nnodes: int
    nproc: int
    master_addr: str
    master_port: int
    task: dict[str, Any]
    resume: Resume | None = None
    init: Resume | None = None
    """Another job's checkpoint, whose weights are all that is taken from it; only where there is nothing to resume."""
    direct: bool = False
    """A machine's only rank starts without torchrun before it: where gangs change, the others wait for its start."""


class Order(Message):
    """The state that the service wants this machine in. Stateless: it may be repeated and may skip steps.

    wait   do nothing new (what runs goes on; without a running generation, idle)
    form   end the ranks of every older generation, then report `ready` for `generation`
    run    ranks of `generation` shall run as `run` says (starting them twice is starting them once)
    drain  checkpoint and stop the ranks of `generation`, report `exited`
    end    upload what is pending, then leave: the machine is not needed any more
    """

    kind: Literal["wait", "form", "run", "drain", "end"]
    generation: int = 0
    reason: str = ""
    run: Run | None = None


class Reply(Message):
    """Answer to redeem, report and orders. Durations count from before the request was sent, on CLOCK_BOOTTIME."""

    protocol: int = PROTOCOL
    etag: str
    """Changes when the order or `report_every_s` does."""
    order: Order
    acked_seq: int
    alive_for_s: float
    funded_for_s: float
    """By then the agent has checkpointed and left, whatever else it hears or doesn't."""
    report_every_s: float
    """5 in general, 0.25 while somebody watches."""
    uploads: Uploads | None = None


class Committed(Message):
    moved: bool
    """False: the checkpoint is kept as history, because its generation is over."""
    uploads: Uploads | None = None


# --- tokens -----------------------------------------------------------------------------------------------


def boot_token(server_secret: str, machine: UUID) -> str:
    """Recomputable, so that a repeated launch has the same bytes; never stored."""
    return hmac.new(server_secret.encode(), f"boot:{machine}".encode(), hashlib.sha256).hexdigest()


def session_hash(session: str) -> str:
    return hashlib.sha256(session.encode()).hexdigest()

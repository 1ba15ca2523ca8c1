# SPDX-License-Identifier: Apache-2.0
"""The agent protocol: the messages that a rented machine's agent and the service exchange under `/agent/v1`.

Seven calls, JSON both ways, `Authorization: Bearer <machine id>.<session secret>` on all but the first three:

    POST /agent/v1/boot          BootReport                  how far a machine has booted that has no agent yet
    POST /agent/v1/wheelhouse    WheelhouseRequest -> WheelhouseReply   where it finds the wheels of its environment
    POST /agent/v1/register      RegisterRequest  -> Reply   exchange the boot token for a session
    POST /agent/v1/report        ReportRequest    -> Reply   heartbeat, one numbered batch, the state of the ranks
    GET  /agent/v1/orders?after=ETAG              -> Reply   long poll: up to 25 s, until the order's ETag differs
    POST /agent/v1/uploads       UploadStart      -> UploadParts   before data that goes up in parts
    POST /agent/v1/checkpoints   CheckpointCommit -> CommitReply

Checkpoint data moves by signed URLs (`UploadUrls`, `CheckpointDownload`), never through these calls.
Every call is idempotent. Errors are problem+json with the codes of `errors`.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Hashable
from typing import Annotated, Any, Literal, TypeVar, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from shoestring_core.json_floats import AnyFloat
from shoestring_core.task import Task

PROTOCOL_VERSION = 1
SUPPORTED_PROTOCOL_VERSIONS = (1,)

LONG_POLL_S = 25
"""How long GET orders waits before it returns an unchanged order."""

MAX_BATCH_BYTES = 1 << 20
"""A larger report is refused with `too-large`; the agent then sends an empty batch with the same number (see
`ReportBatch`)."""

MULTIPART_BYTES = 64 << 20
"""Data of a checkpoint above this size go up in parts of it, where the object store takes parts."""

MAX_MANIFEST_BYTES = 16_000_000
"""A checkpoint whose manifest is larger is refused, when it is committed and when it is adopted."""

PART_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$"
"""Of the parts of a checkpoint, and so of artifacts: a file of this name lies where it is put, in any folder."""

SHA256 = r"^[0-9a-f]{64}$"

LOG_BYTES_PER_HOUR = 32 << 20
"""How much of its log a machine sends in an hour of the clock; the rest stays in its folder. By default the service
stores as much of a job."""

Count = Annotated[int, Field(ge=0, le=2**62)]
"""Fits a 64-bit column of both databases: a larger number is refused here, so that the agent does not retry it."""
Step = Count
LATEST_TIME = 2**40
UnixSeconds = Annotated[float, Field(ge=0, le=LATEST_TIME)]
"""Finite: NaN and infinity are refused."""


class WireMessage(BaseModel):
    # NaN and ±Infinity are valid metric values. JSON has no literals for them, so they are sent as strings. Nothing
    # else is converted: a number is no text, and true no number.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings", allow_inf_nan=True, strict=True)


# --- from the agent ---------------------------------------------------------------------------------------


class Hardware(WireMessage):
    cpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    gpus: list[str] = []


class BootData(WireMessage):
    """What an agent finds in its machine's user data: where the service is, and who it is."""

    server_url: str
    machine: UUID
    boot_token: str = ""
    ca: str = ""
    """The authority that signs the service's certificate, in PEM form; "": one that the machine knows."""


class BootReport(WireMessage):
    """A phase of the boot that has ended, told by a machine's user data before its agent registers."""

    protocol: int = PROTOCOL_VERSION
    machine: Annotated[UUID, Field(strict=False)]
    boot_token: str = Field(max_length=200)
    phase: str = Field(pattern=r"^[a-z]{1,20}$")
    """boot | wheelhouse | driver | download | install | agent"""
    message: str = Field(default="", max_length=2_000)
    failure: Literal["image", "network", "hardware", "boot"] | None = None
    """What is at fault if the phase failed; the machine powers itself off."""
    seconds: float = Field(default=0, ge=0, le=1e6, allow_inf_nan=False)
    """How long the phase took."""
    driver: str = Field(default="", max_length=50)
    """Version of NVIDIA's driver, from the phase that asks for it."""


class WheelhouseRequest(WireMessage):
    """Asked by a machine's user data before its agent registers. `wheelhouse`: the name that its user data has."""

    protocol: int = PROTOCOL_VERSION
    machine: Annotated[UUID, Field(strict=False)]
    boot_token: str = Field(max_length=200)
    wheelhouse: str = Field(pattern=r"^[0-9a-f]{64}$")


class WheelhouseReply(WireMessage):
    """`manifest`: the bytes that the name is the SHA-256 of; `urls`: of its files, in their order."""

    manifest: str
    urls: list[str]


class RegisterRequest(WireMessage):
    """First call of an agent. The first `session_secret` that arrives is bound to the machine; repeating it
    succeeds, any other is refused."""

    protocol: int = PROTOCOL_VERSION
    machine: Annotated[UUID, Field(strict=False)]
    boot_token: str = Field(max_length=200)
    session_secret: str = Field(min_length=32, max_length=200)
    address: str = Field(max_length=255)
    """Address at which the other machines of the gang reach this one."""
    hardware: Hardware = Hardware()


class MetricSeries(WireMessage):
    """Points of one metric: three columns of equal length, steps not decreasing. Times are unix seconds."""

    name: str = Field(min_length=1, max_length=250)
    steps: list[Step] = Field(max_length=20_000)
    times: list[UnixSeconds] = Field(max_length=20_000)
    values: list[Annotated[AnyFloat, Field(strict=False)]] = Field(max_length=20_000)


class LogChunk(WireMessage):
    """Raw bytes of one rank's log. `offset` counts bytes since the machine started, across generations.

    rank -1 is the log of the agent and of the rank server.
    """

    rank: int = Field(ge=-1, le=100_000)
    offset: Count
    data_b64: str


class AgentEvent(WireMessage):
    """An event on the machine: started, gradient_overflow, preemption_notice, rejected, log_quota, warning, …"""

    kind: str = Field(min_length=1, max_length=40)
    at: UnixSeconds
    step: Step | None = None
    data: dict[str, Any] = {}


class ReportBatch(WireMessage):
    """Metrics, logs and events. Numbered per machine from 1 without gaps; belongs to one generation (0: before the
    first).

    When the service refuses a batch permanently (`too-large`, `invalid-request`), the agent moves its content to
    `rejected/` and sends the same number again with nothing but a `rejected` event, so that one bad batch does not
    block a healthy job.
    """

    seq: int = Field(ge=1)
    generation: Count
    points: list[MetricSeries] = Field(default=[], max_length=2_000)
    logs: list[LogChunk] = Field(default=[], max_length=2_000)
    events: list[AgentEvent] = Field(default=[], max_length=2_000)


class RankExit(WireMessage):
    """How one rank ended. outcome `signal`: the process died without writing an outcome."""

    rank: int
    outcome: Literal["finished", "drained", "error", "signal"]
    step: Step | None = None
    at: UnixSeconds
    code: int | None = None
    kind: str | None = Field(default=None, max_length=40)
    """user_code | out_of_memory | nan | data | hardware | infrastructure"""
    since: Step | None = None
    """nan: the first step with NaN or infinite values."""
    message: str = Field(default="", max_length=20_000)
    """What went wrong; after an empty line the traceback."""

    @property
    def summary(self) -> str:
        """What went wrong in one line, for lists and headers; the log and the member's event have the rest."""
        return " ".join(self.message.partition("\n\n")[0].split())[:500]


class MemberStatus(WireMessage):
    """State of this machine as a member of a generation.

    ready    no process of an older generation is left here; node rank 0 adds a free port for the rendezvous
    running  its ranks were started
    exited   its ranks have exited; `exits` contains how. `drained` and `finished` are sent after the checkpoint is
             committed by rank 0's machine, and at once by the others, which write none.
    """

    generation: Count
    state: Literal["ready", "running", "exited"]
    port: int | None = Field(default=None, ge=1, le=65535)
    exits: list[RankExit] = []


class ReportRequest(WireMessage):
    """Heartbeat. Every field but `protocol` is optional."""

    protocol: int = PROTOCOL_VERSION
    batch: ReportBatch | None = None
    member: MemberStatus | None = None
    notice_at: UnixSeconds | None = None
    """When the provider will terminate the machine, once it has given a preemption notice."""


class UploadStart(WireMessage):
    """Data of this size are about to go to the upload that was offered as `nonce`."""

    protocol: int = PROTOCOL_VERSION
    generation: Count
    nonce: str = Field(max_length=64)
    bytes: Count


class CheckpointCommit(WireMessage):
    """A checkpoint whose data and manifest are uploaded. It becomes the job's latest only if every batch up to
    `through_seq` is stored and `generation` is still the current one."""

    protocol: int = PROTOCOL_VERSION
    generation: Count
    step: Step
    nonce: str = Field(max_length=64)
    manifest_sha256: str = Field(min_length=64, max_length=64)
    bytes: Count
    through_seq: Count
    reason: Literal["periodic", "order", "final"]
    save_s: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None = None
    """From a request to stop until the object store has it: the steps that are trained until all ranks know of it, at
    their measured pace, writing and uploading. None: not measured, as after a broken upload."""
    result: dict[str, Any] | None = None
    """Metrics of a finished run (`reason` final): this commit ends the job."""


# --- from the service -------------------------------------------------------------------------------------


class UploadUrls(WireMessage):
    """An unused pair of write-once URLs for the next checkpoint of `generation`."""

    generation: int
    nonce: str
    data_url: str
    manifest_url: str


class MultipartUpload(WireMessage):
    """An object that goes up in parts of `part_bytes`, the last of which may be smaller. It appears once a POST to
    `complete_url` lists the parts with the ETags that their PUTs returned, as S3's CompleteMultipartUpload; that needs
    no word from the service."""

    part_bytes: int
    part_urls: list[str]
    complete_url: str


class UploadParts(WireMessage):
    multipart: MultipartUpload | None
    """None: the store takes the data by one PUT to `data_url`."""


class CheckpointDownload(WireMessage):
    """A checkpoint that a generation starts from."""

    step: Step
    data_url: str
    manifest_url: str
    manifest_sha256: str


class LaunchConfig(WireMessage):
    """How to start this machine's ranks: places as torchrun names them, and task.json without local paths."""

    node_rank: int
    nnodes: int
    nproc_per_node: int
    master_addr: str
    master_port: int
    task: Task
    resume: CheckpointDownload | None = None
    init: CheckpointDownload | None = None
    """Checkpoint of another job to initialize the weights from; unset if there is one to resume."""


class Order(WireMessage):
    """The state that the service wants this machine to be in. Stateless: it may be repeated and may skip states.

    wait      start nothing new; running ranks continue
    prepare   end the ranks of every older generation, then report `ready` for `generation`
    run       the ranks of `generation` run according to `run` (idempotent)
    drain     checkpoint and stop the ranks of `generation`, report `exited`
    shutdown  upload what is pending, then exit: the machine is no longer needed
    """

    kind: Literal["wait", "prepare", "run", "drain", "shutdown"]
    generation: int = 0
    reason: str = ""
    run: LaunchConfig | None = None


class Reply(WireMessage):
    """Response to register, report and orders. Durations count from before the request was sent, on CLOCK_BOOTTIME."""

    protocol: int = PROTOCOL_VERSION
    etag: str
    """Changes when the order or `report_interval_s` does."""
    order: Order
    acked_seq: int
    lease_s: float
    """Without a call for this long the machine counts as unresponsive."""
    funding_lease_s: float
    """When it expires, the agent has checkpointed and exited, even if the service is unreachable."""
    report_interval_s: float
    """5 by default, 0.25 while somebody watches the job."""
    left_for_s: float = 0
    """With a notice: for so long the machine stays once its work is over, though it is ordered to shut down, because
    its provider makes it free by interrupting it. 0: it ends at once."""
    upload_urls: UploadUrls | None = None


class CommitReply(WireMessage):
    promoted: bool
    """Whether it became the job's latest checkpoint. False: its generation is over, so it is kept as history only."""
    upload_urls: UploadUrls | None = None


# --- stored messages --------------------------------------------------------------------------------------

T = TypeVar("T")


def from_stored(kind: type[T], tree: Any) -> T:
    """Parse a message that was stored as a tree, in a row or in a machine's user data: ids are text in it."""
    message: T = _adapter(cast("Hashable", kind)).validate_python(tree, strict=False)
    return message


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


# --- tokens -----------------------------------------------------------------------------------------------


def derive_boot_token(server_secret: str, machine: UUID) -> str:
    """Return the machine's boot token. Derived instead of stored, so that a repeated launch request is identical."""
    return hmac.new(server_secret.encode(), f"boot:{machine}".encode(), hashlib.sha256).hexdigest()


def hash_session(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

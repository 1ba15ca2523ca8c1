# SPDX-License-Identifier: Apache-2.0
"""The agent protocol: the calls of rented machines. Its messages and rules are in `shoestring_core.wire`."""

from __future__ import annotations

import hmac
import logging
import time
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from prometheus_client import Counter
from pydantic import ValidationError
from shoestring_core import wheelhouse, wire
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import (
    AgentRefused,
    InvalidRequest,
    NotFound,
    ShoestringError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from shoestring_core.events import Alarm
from shoestring_core.store import checkpoints, queries, reports
from shoestring_core.store.fleet import agents
from shoestring_core.store.tables import MachineRow
from shoestring_core.store.transactions import Write
from shoestring_core.task import MAX_CHECKPOINT_BYTES
from shoestring_core.wording.machines import SecretRefused

from shoestring_api.app_state import AppState
from shoestring_api.dependencies import StateDep

router = APIRouter(prefix="/agent/v1", tags=["agent"])
log = logging.getLogger(__name__)

REPORT_INTERVAL_S = 5.0
WATCHED_REPORT_INTERVAL_S = 0.25
"""Report interval while a live stream shows the job."""
URL_MARGIN_S = 600
"""How much longer signed URLs are valid than the machine is funded."""
WHEEL_URLS_S = 900
"""How long a machine's URLs of its wheels are valid: longer than it may take to boot."""
ALARM_INTERVAL_S = 60.0
MAX_BODY_BYTES = wire.MAX_BATCH_BYTES + 64 * 1024

BATCHES = Counter("shoestring_agent_batches", "Report batches of agents, by outcome", ["outcome"])

M = TypeVar("M", bound=wire.WireMessage)


# --- authentication ----------------------------------------------------------------------------------------


def _authenticate(state: StateDep, request: Request) -> MachineRow:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    name, _, session = token.strip().partition(".")
    try:
        machine_id = UUID(name)
    except ValueError:
        machine_id = None
    if scheme.lower() != "bearer" or machine_id is None or not session:
        raise Unauthenticated("No machine session was sent.", hint="Send `Authorization: Bearer MACHINE.SESSION`.")
    try:
        with state.store.read() as db:
            return agents.authenticate(db, machine_id, session)
    except AgentRefused:
        _raise_alarm(state, machine_id)
        raise


MachineDep = Annotated[MachineRow, Depends(_authenticate)]

_alarmed_at: dict[UUID, float] = {}


def _raise_alarm(state: AppState, machine_id: UUID) -> None:
    """Record an alarm for the machine's team that a wrong session was used in its name, at most once a minute."""
    if time.monotonic() - _alarmed_at.get(machine_id, -ALARM_INTERVAL_S) < ALARM_INTERVAL_S:
        return

    def work(db: Write) -> bool:
        job = queries.load_job_of_machine(db, machine_id)
        if job is not None:
            db.event(
                Alarm(alarm="wrong_session", machine=machine_id),
                team=job.team_id, actor="agent", job=job.id, reason=SecretRefused("session"),
            )  # fmt: skip
        return job is not None

    if state.store.write(work):
        _alarmed_at[machine_id] = time.monotonic()


async def _read_body(request: Request, _: MachineDep) -> bytes:
    """Return the request body, read after authentication and up to the size limit."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            break
    return bytes(body)


Body = Annotated[bytes, Depends(_read_body)]


def _request_body_schema(model: type[wire.WireMessage]) -> dict[str, Any]:
    """Return the OpenAPI body of a route that parses its body itself."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


# --- calls ------------------------------------------------------------------------------------------------


@router.post("/boot", status_code=204)
def report_boot(body: wire.BootReport, state: StateDep) -> None:
    """Record how far a machine has booted that has no agent yet."""
    _check_protocol(body.protocol)
    _require_boot_token(state, body.machine, body.boot_token)
    state.store.write(lambda db: agents.record_boot(db, body))


@router.post("/wheelhouse")
def get_wheelhouse(body: wire.WheelhouseRequest, state: StateDep) -> wire.WheelhouseReply:
    """Return the manifest of the wheels that a machine installs as it boots, and a URL for each of them."""
    _check_protocol(body.protocol)
    _require_boot_token(state, body.machine, body.boot_token)
    with state.store.read() as db:
        agents.load_booting(db, body.machine)
        expires_at = db.now // S + WHEEL_URLS_S
    manifest = state.objects.read(wheelhouse.manifest_key(body.wheelhouse), wheelhouse.MAX_MANIFEST_BYTES)
    found = wheelhouse.Wheelhouse.model_validate_json(manifest)
    urls = [state.objects.get_url(wheelhouse.file_key(file.sha256), expires_at) for file in found.files]
    return wire.WheelhouseReply(manifest=manifest.decode(), urls=urls)


@router.post("/register")
def register(body: wire.RegisterRequest, state: StateDep) -> wire.Reply:
    """Exchange the boot token for the agent's session. The first session binds the machine; repeating it succeeds."""
    _check_protocol(body.protocol)
    token_ok = _is_boot_token(state, body.machine, body.boot_token)
    bound = state.store.write(
        lambda db: agents.register(
            db,
            body.machine,
            token_ok,
            wire.hash_session(body.session_secret),
            body.address,
            body.hardware,
            state.timeouts,
        )
    )
    if bound is None:
        raise AgentRefused(
            "This boot token is wrong, or another agent registered with it.", hint="The team has been notified."
        )
    return _build_reply(state, body.machine)


@router.post("/report", openapi_extra=_request_body_schema(wire.ReportRequest))
def report(machine: MachineDep, body: Body, state: StateDep) -> wire.Reply:
    """Receive a heartbeat, one numbered batch, and the state of the machine's ranks.

    The heartbeat counts even if the rest is rejected.
    """
    state.store.write(lambda db: agents.renew_lease(db, machine.id, state.timeouts), batch=True)
    message = _parse(wire.ReportRequest, body)
    _check_protocol(message.protocol)
    if message.notice_at is not None and machine.notice_at is None:
        notice_at = int(message.notice_at * S)
        state.store.write(lambda db: agents.record_notice(db, machine.id, notice_at))
    if message.batch is not None:
        _accept_batch(state, machine, message.batch)
    if message.member is not None:
        member = message.member
        state.store.write(lambda db: agents.record_member_status(db, machine.id, member))
    return _build_reply(state, machine.id)


@router.get("/orders")
async def get_orders(
    machine: MachineDep, state: StateDep, after: Annotated[str, Query(max_length=200)] = ""
) -> wire.Reply:
    """Return the orders for the machine. The request is held until they differ from `after` (long polling)."""
    deadline = time.monotonic() + wire.LONG_POLL_S
    with state.notifier.subscribe(machine.job) as signal:
        while True:
            signal.clear()
            reply = await run_in_threadpool(_build_reply, state, machine.id, machine.session_hash)
            if reply.etag != after or time.monotonic() > deadline or state.notifier.closing:
                return reply
            await signal.wait()


@router.post("/uploads")
def start_upload(machine: MachineDep, body: wire.UploadStart, state: StateDep) -> wire.UploadParts:
    """Return addresses for the parts of a checkpoint's data, if the object store takes parts."""
    _check_protocol(body.protocol)
    if body.bytes > MAX_CHECKPOINT_BYTES:
        raise TooLarge(f"A checkpoint may have at most {MAX_CHECKPOINT_BYTES:,} bytes.")
    with state.store.read() as db:
        upload = checkpoints.next_upload_target(db, machine.id)
        expires_at = _urls_expire_at(state, machine, db.now)
    if upload is None or (upload.generation, upload.nonce) != (body.generation, body.nonce):
        raise InvalidRequest(f"{body.nonce!r} is not the upload that was offered for generation {body.generation}.")
    return wire.UploadParts(multipart=state.objects.start_multipart(f"{upload.key}/data", expires_at, body.bytes))


@router.post("/checkpoints")
def commit_checkpoint(machine: MachineDep, body: wire.CheckpointCommit, state: StateDep) -> wire.CommitReply:
    """Commit an uploaded checkpoint after verifying its objects."""
    _check_protocol(body.protocol)
    _check_objects(state, machine, body)
    promoted = state.store.write(lambda db: checkpoints.commit(db, machine.id, body))
    return wire.CommitReply(promoted=promoted, upload_urls=_next_upload(state, machine.id))


# --- helpers ------------------------------------------------------------------------------------------------


def _require_boot_token(state: AppState, machine: UUID, token: str) -> None:
    if not _is_boot_token(state, machine, token):
        raise AgentRefused("This boot token is wrong.")


def _is_boot_token(state: AppState, machine: UUID, token: str) -> bool:
    return hmac.compare_digest(wire.derive_boot_token(state.secret, machine).encode(), token.encode())


def _check_protocol(protocol: int) -> None:
    if protocol not in wire.SUPPORTED_PROTOCOL_VERSIONS:
        raise InvalidRequest(
            f"Agent protocol {protocol} is not supported; use {', '.join(map(str, wire.SUPPORTED_PROTOCOL_VERSIONS))}.",
            hint="Use an agent of the same version as the service.",
        )


def _parse(model: type[M], body: bytes) -> M:
    if len(body) > wire.MAX_BATCH_BYTES:
        BATCHES.labels("refused").inc()
        raise TooLarge(
            f"A report must have at most {wire.MAX_BATCH_BYTES} bytes.", hint="Send an empty batch, then smaller ones."
        )
    try:
        return model.model_validate_json(body)
    except ValidationError as invalid:
        BATCHES.labels("refused").inc()
        violations = [f"{'/'.join(map(str, error['loc']))}: {error['msg']}" for error in invalid.errors()[:5]]
        raise InvalidRequest("; ".join(violations)) from None


def _accept_batch(state: AppState, machine: MachineRow, batch: wire.ReportBatch) -> None:
    quota = state.settings.log_quota_bytes
    try:
        acked = state.store.write(lambda db: reports.accept_batch(db, machine.id, batch, log_quota=quota), batch=True)
    except ShoestringError:
        BATCHES.labels("refused").inc()
        raise
    BATCHES.labels("accepted" if acked == batch.seq else "replayed").inc()


def _build_reply(state: AppState, machine_id: UUID, session_hash: str | None = None) -> wire.Reply:
    """Return the committed state: order, leases, upload URLs of the next checkpoint, report interval.

    While no URLs can be signed, machines start nothing new, and continue with those that they hold.

    Raises AgentRefused if the machine's session is another than that of `session_hash`, which a request was held for.
    """
    signs = _can_sign(state)
    with state.store.read() as db:
        machine = db.sql.get_one(MachineRow, machine_id)
        if session_hash is not None and machine.session_hash != session_hash:
            raise AgentRefused("This is no longer the session of that machine.")
        expires_at = _urls_expire_at(state, machine, db.now)
        order, etag = agents.current_order(
            db, machine_id, lambda key: state.objects.get_url(key, expires_at) if signs else "", state.timeouts
        )
        if order.kind == "run" and not signs:
            order, etag = wire.Order(kind="wait"), "no-urls"
        next_upload = checkpoints.next_upload_target(db, machine_id) if signs else None
        now = db.now
    interval = WATCHED_REPORT_INTERVAL_S if state.notifier.is_watched(machine.job) else REPORT_INTERVAL_S
    return wire.Reply(
        etag=f"{etag}-{interval:g}",
        order=order,
        acked_seq=machine.acked_seq,
        lease_s=_seconds_left(machine.alive_until, now),
        funding_lease_s=min(_seconds_left(machine.funded_until, now), state.timeouts.funding_lease / S),
        report_interval_s=interval,
        left_for_s=_seconds_left(machine.left_until, now),
        upload_urls=_sign_upload(state, next_upload, expires_at),
    )


def _can_sign(state: AppState) -> bool:
    try:
        state.objects.urls_end_by()
    except Unavailable as unavailable:
        log.warning("machines get no new URLs: %s %s", unavailable, unavailable.hint)
        return False
    return True


def _next_upload(state: AppState, machine_id: UUID) -> wire.UploadUrls | None:
    with state.store.read() as db:
        machine = db.sql.get_one(MachineRow, machine_id)
        return _sign_upload(
            state, checkpoints.next_upload_target(db, machine_id), _urls_expire_at(state, machine, db.now)
        )


def _sign_upload(state: AppState, upload: checkpoints.Upload | None, expires_at: int) -> wire.UploadUrls | None:
    if upload is None:
        return None
    return wire.UploadUrls(
        generation=upload.generation,
        nonce=upload.nonce,
        data_url=state.objects.put_url(f"{upload.key}/data", expires_at, MAX_CHECKPOINT_BYTES),
        manifest_url=state.objects.put_url(f"{upload.key}/manifest.json", expires_at, wire.MAX_MANIFEST_BYTES),
    )


def _urls_expire_at(state: AppState, machine: MachineRow, now: int) -> int:
    """Return unix seconds: past the end of the machine's funding, with a margin for a slow upload."""
    return (max(machine.funded_until or now, now) + state.timeouts.drain) // S + URL_MARGIN_S


def _seconds_left(until: int | None, now: int) -> float:
    return max(0.0, ((until or now) - now) / S)


def _check_objects(state: AppState, machine: MachineRow, commit: wire.CheckpointCommit) -> None:
    """Raise InvalidRequest unless data and manifest are uploaded, complete and match each other."""
    key = checkpoints.object_key(machine.job, commit.generation, _check_nonce(commit.nonce))
    data = state.objects.head(f"{key}/data")
    try:
        manifest, manifest_sha256 = checkpoints.read_manifest(state.objects, key)
    except NotFound:
        data = None
    if data is None:
        raise InvalidRequest(
            "The checkpoint's objects are not uploaded.", hint="Upload data and manifest, then commit."
        )
    if manifest_sha256 != commit.manifest_sha256:
        raise InvalidRequest("The manifest does not match the commit: its SHA-256 differs.")
    if not manifest.describes(data) or data.bytes != commit.bytes:
        raise InvalidRequest("The data does not match its manifest: size or checksum differ.")
    if data.bytes > MAX_CHECKPOINT_BYTES:
        raise InvalidRequest(f"A checkpoint may have at most {MAX_CHECKPOINT_BYTES:,} bytes.")
    if (manifest.job, manifest.generation, manifest.step) != (machine.job, commit.generation, commit.step):
        raise InvalidRequest("The manifest belongs to another job, generation or step.")


def _check_nonce(text: str) -> str:
    if not text.isascii() or not text.isalnum():
        raise InvalidRequest(f"{text!r} is not an upload nonce of this service.")
    return text

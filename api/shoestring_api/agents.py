# SPDX-License-Identifier: Apache-2.0
"""The agent protocol: what rented machines call. Its messages and rules are in `shoestring_core.wire`."""

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
from shoestring_core import wire
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import AgentRefused, InvalidRequest, ShoestringError, TooLarge, Unauthenticated
from shoestring_core.store import checkpoints, reports, rows
from shoestring_core.store.db import Write
from shoestring_core.store.fleet import agents
from shoestring_core.store.objects import Head
from shoestring_core.store.tables import MachineRow

from shoestring_api.jobs import MAX_MANIFEST_BYTES
from shoestring_api.service import Here, Service

router = APIRouter(prefix="/agent/v1", tags=["agent"])
log = logging.getLogger(__name__)

REPORT_S = 5.0
REPORT_WATCHED_S = 0.25
URL_SLACK_S = 600
"""Signed URLs outlive the money that a machine has by this long."""
ALARM_EVERY_S = 60.0
MAX_BODY_BYTES = wire.MAX_BATCH_BYTES + 64 * 1024

BATCHES = Counter("shoestring_batches", "Batches of agents, by what became of them", ["outcome"])

M = TypeVar("M", bound=wire.WireMessage)


# --- who is asking ----------------------------------------------------------------------------------------


def _machine(service: Here, request: Request) -> MachineRow:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    name, _, session = token.strip().partition(".")
    try:
        machine_id = UUID(name)
    except ValueError:
        machine_id = None
    if scheme.lower() != "bearer" or machine_id is None or not session:
        raise Unauthenticated("No machine's session was sent.", hint="Send `Authorization: Bearer MACHINE.SESSION`.")
    try:
        with service.store.read() as db:
            return agents.authenticate(db, machine_id, session)
    except AgentRefused:
        _alarm(service, machine_id)
        raise


FromMachine = Annotated[MachineRow, Depends(_machine)]

_alarmed_at: dict[UUID, float] = {}


def _alarm(service: Service, machine_id: UUID) -> None:
    """Tell the machine's team that somebody else speaks in its name; not more than once a minute."""
    if time.monotonic() - _alarmed_at.get(machine_id, -ALARM_EVERY_S) < ALARM_EVERY_S:
        return

    def work(db: Write) -> bool:
        job = rows.job_of(db, machine_id)
        if job is not None:
            db.event(
                team=job.team_id, kind="alarm", actor="agent", job=job.id, ref=str(machine_id),
                reason="Refused a wrong session for a machine.",
            )  # fmt: skip
        return job is not None

    if service.store.write(work):
        _alarmed_at[machine_id] = time.monotonic()


async def _body(request: Request, _: FromMachine) -> bytes:
    """The request's bytes, read once the machine is known, up to the size that is taken."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            break
    return bytes(body)


Body = Annotated[bytes, Depends(_body)]


def _schema(model: type[wire.WireMessage]) -> dict[str, Any]:
    """For routes that read their body themselves."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


# --- calls ------------------------------------------------------------------------------------------------


@router.post("/register")
def register(body: wire.RegisterRequest, service: Here) -> wire.Reply:
    """Trade the boot token for a session of the agent's own. The first secret binds; the same again succeeds."""
    _check_protocol(body.protocol)
    expected = wire.derive_boot_token(service.secret, body.machine)
    token_ok = hmac.compare_digest(expected.encode(), body.boot_token.encode())
    bound = service.store.write(
        lambda db: agents.register(
            db,
            body.machine,
            token_ok,
            wire.hash_session(body.session),
            body.address,
            body.hardware.model_dump(),
            service.timeouts,
        )
    )
    if bound is None:
        raise AgentRefused("This boot token is wrong, or was registered by another.", hint="The team has been told.")
    return _reply(service, body.machine)


@router.post("/report", openapi_extra=_schema(wire.ReportRequest))
def report(machine: FromMachine, body: Body, service: Here) -> wire.Reply:
    """Heartbeat, one numbered batch, the state of the machine's ranks.

    The sign of life counts even if the rest is refused.
    """
    service.reports.write(lambda db: agents.renew(db, machine.id, service.timeouts))
    said = _parsed(wire.ReportRequest, body)
    _check_protocol(said.protocol)
    if said.notice_at is not None and machine.notice_at is None:
        notice_at = int(said.notice_at * S)
        service.store.write(lambda db: agents.record_notice(db, machine.id, notice_at))
    if said.batch is not None:
        _accept(service, machine, said.batch)
    if said.member is not None:
        member = said.member
        service.store.write(lambda db: agents.report_member(db, machine.id, member))
    return _reply(service, machine.id)


@router.get("/orders")
async def orders(machine: FromMachine, service: Here, after: Annotated[str, Query(max_length=200)] = "") -> wire.Reply:
    """What the service wants of the machine; held until it differs from `after`."""
    deadline = time.monotonic() + wire.LONG_POLL_S
    with service.wake.listen(machine.job) as ear:
        while True:
            ear.clear()
            reply = await run_in_threadpool(_reply, service, machine.id)
            if reply.etag != after or time.monotonic() > deadline or service.wake.closing:
                return reply
            await ear.wait()


@router.post("/checkpoints")
def commit(machine: FromMachine, body: wire.CheckpointCommit, service: Here) -> wire.CommitReply:
    """A checkpoint is uploaded. It counts once its objects are seen to be whole."""
    _check_protocol(body.protocol)
    _check_objects(service, machine, body)
    moved = service.store.write(lambda db: checkpoints.commit(db, machine.id, body))
    return wire.CommitReply(promoted=moved, upload_urls=_uploads(service, machine.id))


# --- parts ------------------------------------------------------------------------------------------------


def _check_protocol(protocol: int) -> None:
    if protocol not in wire.SUPPORTED_PROTOCOL_VERSIONS:
        raise InvalidRequest(
            f"Agent protocol {protocol} is not supported; use {', '.join(map(str, wire.SUPPORTED_PROTOCOL_VERSIONS))}.",
            hint="Start the machine with an agent of the service's version.",
        )


def _parsed(model: type[M], body: bytes) -> M:
    if len(body) > wire.MAX_BATCH_BYTES:
        BATCHES.labels("refused").inc()
        raise TooLarge(
            f"A report has at most {wire.MAX_BATCH_BYTES} bytes.", hint="Send the batch empty, and smaller ones."
        )
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        BATCHES.labels("refused").inc()
        faults = [f"{'/'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5]]
        raise InvalidRequest("; ".join(faults)) from None


def _accept(service: Service, machine: MachineRow, batch: wire.TelemetryBatch) -> None:
    quota = service.settings.log_quota_bytes
    try:
        acked = service.reports.write(lambda db: reports.accept_batch(db, machine.id, batch, log_quota=quota))
    except ShoestringError:
        BATCHES.labels("refused").inc()
        raise
    BATCHES.labels("accepted" if acked == batch.seq else "replayed").inc()


def _reply(service: Service, machine_id: UUID) -> wire.Reply:
    """What holds now, as committed: order, leases, where the next checkpoint goes, when to report again."""
    with service.store.read() as db:
        machine = db.sql.get_one(MachineRow, machine_id)
        expires_at = _urls_expire_at(service, machine, db.now)
        order, etag = agents.order(
            db, machine_id, lambda key: service.objects.get_url(key, expires_at), service.timeouts
        )
        next_upload = checkpoints.uploads(db, machine_id)
        now = db.now
    every = REPORT_WATCHED_S if service.wake.watched(machine.job) else REPORT_S
    return wire.Reply(
        etag=f"{etag}-{every:g}",
        order=order,
        acked_seq=machine.acked_seq,
        lease_s=_seconds_left(machine.alive_until, now),
        funding_lease_s=_seconds_left(machine.funded_until, now),
        report_interval_s=every,
        upload_urls=_signed(service, next_upload, expires_at),
    )


def _uploads(service: Service, machine_id: UUID) -> wire.UploadUrls | None:
    with service.store.read() as db:
        machine = db.sql.get_one(MachineRow, machine_id)
        return _signed(service, checkpoints.uploads(db, machine_id), _urls_expire_at(service, machine, db.now))


def _signed(service: Service, upload: checkpoints.Upload | None, expires_at: int) -> wire.UploadUrls | None:
    if upload is None:
        return None
    return wire.UploadUrls(
        generation=upload.generation,
        nonce=upload.nonce,
        data_url=service.objects.put_url(f"{upload.key}/data", expires_at),
        manifest_url=service.objects.put_url(f"{upload.key}/manifest.json", expires_at),
    )


def _urls_expire_at(service: Service, machine: MachineRow, now: int) -> int:
    """Unix seconds: past the moment by which the machine has left, with room for a slow upload."""
    return (max(machine.funded_until or now, now) + service.timeouts.drain) // S + URL_SLACK_S


def _seconds_left(until: int | None, now: int) -> float:
    return max(0.0, ((until or now) - now) / S)


def _check_objects(service: Service, machine: MachineRow, said: wire.CheckpointCommit) -> None:
    """Raises InvalidRequest unless data and manifest are there, whole, and of each other."""
    key = checkpoints.object_key(machine.job, said.generation, _nonce(said.nonce))
    data, manifest_head = service.objects.head(f"{key}/data"), service.objects.head(f"{key}/manifest.json")
    if data is None or manifest_head is None:
        raise InvalidRequest(
            "The checkpoint's objects are not uploaded.", hint="Upload data and manifest, then commit."
        )
    if manifest_head.sha256 != said.manifest_sha256:
        raise InvalidRequest("The manifest is not the one that was announced: its SHA-256 differs.")
    if manifest_head.bytes > MAX_MANIFEST_BYTES:
        raise InvalidRequest(f"A manifest has at most {MAX_MANIFEST_BYTES:,} bytes.")
    try:
        manifest = checkpoints.Manifest.model_validate_json(
            service.objects.read(f"{key}/manifest.json", MAX_MANIFEST_BYTES)
        )
    except ValidationError as error:
        raise InvalidRequest(f"The manifest can't be read: {error.errors()[0]['msg']}.") from None
    if data != Head(manifest.bytes, manifest.sha256) or data.bytes != said.bytes:
        raise InvalidRequest("The data is not what its manifest says: size or SHA-256 differ.")
    if (manifest.job, manifest.generation, manifest.step) != (machine.job, said.generation, said.step):
        raise InvalidRequest("The manifest is of another job, generation or step.")


def _nonce(text: str) -> str:
    if not text.isascii() or not text.isalnum():
        raise InvalidRequest(f"{text!r} is not an upload that was given out.")
    return text

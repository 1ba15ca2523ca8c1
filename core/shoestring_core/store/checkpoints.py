# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: write-once objects that machines upload; only a row here makes one of them the job's.

The objects of a checkpoint are `<key>/data` and `<key>/manifest.json`. Where the next checkpoint of a generation goes
follows from those that are stored, so that the service finds an upload whose machine died before committing it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy import insert, select, update

from shoestring_core import wire
from shoestring_core.decide.notices import StoredCheckpoint, outlasted_notice
from shoestring_core.errors import (
    AgentRefused,
    CheckpointAheadOfBatches,
    InvalidRequest,
    InvalidSpec,
    Problem,
    TooLarge,
)
from shoestring_core.events import CheckpointStored
from shoestring_core.states import AttemptState, EndReason, JobState
from shoestring_core.store import jobs, metrics, transitions
from shoestring_core.store.fleet import rows
from shoestring_core.store.fleet.offers import load_timeouts
from shoestring_core.store.objects import ObjectInfo, Objects
from shoestring_core.store.tables import CheckpointRow, GenerationRow, JobRow, MachineRow, MemberRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording.agents import CheckpointSaved
from shoestring_core.wording.jobs import FinishedAtStep
from shoestring_core.wording.notices import CheckpointOutlastsNotice


@dataclass(frozen=True)
class Upload:
    """Where the next checkpoint of a generation goes: sign `<key>/data` and `<key>/manifest.json` for upload."""

    generation: int
    nonce: str
    key: str


class Part(BaseModel):
    name: str = Field(pattern=wire.PART_NAME)
    offset: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=wire.SHA256)


class Manifest(BaseModel):
    """The parts of a checkpoint: written by the ranks, read here to verify an upload and to list artifacts."""

    model_config = ConfigDict(extra="ignore")
    format: int
    job: UUID
    generation: int
    step: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str
    crc64nvme: str | None = None
    """Of the data, as S3 keeps it of each object: the agent's part of the manifest."""
    parts: list[Part]

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if len({part.name for part in self.parts}) < len(self.parts):
            raise ValueError("two parts have the same name")
        for part in self.parts:
            if part.offset + part.bytes > self.bytes:
                raise ValueError(f"part {part.name} ends after the data")
        return self

    def describes(self, data: ObjectInfo) -> bool:
        """Whether the data object has this size, and the checksum that its store keeps."""
        return data.bytes == self.bytes and data.checksum in (f"sha256:{self.sha256}", f"crc64nvme:{self.crc64nvme}")


@dataclass(frozen=True)
class StrandedUpload:
    """Where a checkpoint may have been uploaded without a commit. `last_step`: points are stored up to there."""

    job: UUID
    generation: int
    key: str
    last_step: int


def read_manifest(objects: Objects, key: str) -> tuple[Manifest, str]:
    """The manifest of the checkpoint at `key`, and its SHA-256.

    Raises NotFound, and InvalidRequest if it is damaged or too large: it will stay so, because objects never change.
    """
    try:
        text = objects.read(f"{key}/manifest.json", wire.MAX_MANIFEST_BYTES)
        return Manifest.model_validate_json(text), hashlib.sha256(text).hexdigest()
    except TooLarge:
        raise InvalidRequest(f"A manifest must have at most {wire.MAX_MANIFEST_BYTES:,} bytes.") from None
    except ValidationError as error:
        raise InvalidRequest(f"The manifest can't be read: {error.errors()[0]['msg']}.") from None


def next_upload_target(db: Read, machine_id: UUID) -> Upload | None:
    """The unused pair of objects of the machine that uploads for its job's current generation; None for the others."""
    generation = db.sql.scalar(
        select(GenerationRow)
        .join(MemberRow, (MemberRow.job == GenerationRow.job) & (MemberRow.generation == GenerationRow.number))
        .where(MemberRow.machine == machine_id, MemberRow.node_rank == 0, GenerationRow.state == "formed")
    )
    return None if generation is None else _next_target(db, generation.job, generation.number)


def commit(db: Write, machine_id: UUID, request: wire.CheckpointCommit) -> bool:
    """Record a checkpoint whose objects the caller has verified. True: it is the job's newest; False: only history.

    Only the current generation moves the job's pointer; `reason` final ends the job with it. The same commit again
    changes nothing. Raises CheckpointAheadOfBatches while batches up to `through_seq` are not stored, AgentRefused if
    the machine is not a member of the generation, InvalidRequest for an upload that was never offered.
    """
    job = rows.lock_job(db, rows.load_machine(db, machine_id).job)
    machine = rows.load_machine(db, machine_id)
    _require_member(db, job, machine, request.generation)
    if machine.acked_seq < request.through_seq:
        raise CheckpointAheadOfBatches(
            f"Batches up to {request.through_seq} must be stored first; {machine.acked_seq} are.",
            expected=machine.acked_seq + 1,
        )
    key = object_key(job.id, request.generation, request.nonce)
    known = _at_step(db, job.id, request.generation, request.step)
    if known and known.object_key == key:
        return job.checkpoint == known.id
    if _was_replaced(db, job.id, request):
        return False

    checkpoint, final = known.id if known else uuid7(), request.reason == "final"
    current = request.generation == job.generation and _is_open(db, job.id, request.generation)
    moves = current and job.state != JobState.ENDED and request.step >= _step(db, job)
    if moves:
        _point(db, job, checkpoint, request.step, request.result if final else None)
    if moves and final:
        _finish(db, job, request)
    uploaded = _Uploaded(
        job=job.id, generation=request.generation, step=request.step, final=final, key=key,
        manifest_sha=request.manifest_sha256, bytes=request.bytes,
        save_ms=None if request.save_s is None else round(1000 * request.save_s),
    )  # fmt: skip
    _store(db, checkpoint, uploaded, known)
    db.event(
        CheckpointStored(checkpoint=checkpoint, step=request.step, bytes=request.bytes, promoted=moves, final=final),
        team=job.team_id,
        actor="agent",
        job=job.id,
        attempt=machine.attempt,
        generation=request.generation,
        reason=CheckpointSaved(request.reason, request.step, _told_once(db, machine, request)),
    )
    return moves


def load_newest(db: Read, job_id: UUID) -> CheckpointRow | None:
    """The checkpoint that the job would resume from."""
    return db.sql.scalar(
        select(CheckpointRow).join(JobRow, JobRow.checkpoint == CheckpointRow.id).where(JobRow.id == job_id)
    )


def newest_before(db: Read, job: JobRow, step: int) -> CheckpointRow | None:
    """The newest of the job's present course from which step `step` is still to come; failing that what its first
    generation started from; None: nothing."""
    generations = list(
        db.sql.scalars(select(GenerationRow).where(GenerationRow.job == job.id).order_by(GenerationRow.number))
    )
    owned = metrics.owned_steps(generations)
    earlier = select(CheckpointRow).where(CheckpointRow.job == job.id, CheckpointRow.step < step)
    for row in db.sql.scalars(earlier.order_by(CheckpointRow.step.desc(), CheckpointRow.generation.desc())):
        if row.step in owned[row.generation]:
            return row
    first = generations[0].start_checkpoint if generations else None
    return db.sql.get(CheckpointRow, first) if first else None


def load_for_init(db: Read, team: UUID, job_id: UUID) -> CheckpointRow:
    """The checkpoint with whose weights another job of the team may start.

    Raises NotFound, for another team's job as well, and InvalidSpec if the job has saved nothing yet.
    """
    job = jobs.get(db, team, job_id)
    found = load_newest(db, job.id)
    if found is None:
        why = Problem("/init", f"Job {job.id} has no checkpoint yet. Name another, or wait for it.", "no-checkpoint")
        raise InvalidSpec([why])
    return found


def newest_final(db: Read, job_id: UUID) -> CheckpointRow | None:
    """The newest checkpoint whose parts are the job's artifacts."""
    found = select(CheckpointRow).where(CheckpointRow.job == job_id, CheckpointRow.final)
    return db.sql.scalar(found.order_by(CheckpointRow.generation.desc(), CheckpointRow.step.desc()).limit(1))


def find_stranded_upload(db: Read, job_id: UUID, attempt_number: int) -> StrandedUpload | None:
    """Where to look for an upload that an attempt's last generation may have left behind; None if it can't matter."""
    job = db.sql.scalars(select(JobRow).where(JobRow.id == job_id)).one()
    generation = db.sql.get(GenerationRow, (job_id, job.generation))
    if job.state == JobState.ENDED or generation is None or generation.attempt != attempt_number:
        return None
    if generation.state != "formed" or generation.last_step is None:
        return None
    return StrandedUpload(
        job_id, generation.number, _next_target(db, job_id, generation.number).key, generation.last_step
    )


def adopt_upload(db: Write, place: StrandedUpload, manifest: Manifest, manifest_sha: str) -> bool:
    """Make a stranded upload, complete and true to its hashes, the job's newest checkpoint. False: it isn't one.

    Its points must all be stored: no later run would redo those that are missing.
    """
    job = rows.lock_job(db, place.job)
    fits = (manifest.job, manifest.generation) == (place.job, place.generation) and manifest.step <= place.last_step
    current = job.generation == place.generation and _is_open(db, job.id, place.generation)
    fresh = _at_step(db, job.id, place.generation, manifest.step) is None and manifest.step > _step(db, job)
    if not fits or not current or not fresh or job.state == JobState.ENDED:
        return False
    checkpoint = uuid7()
    _point(db, job, checkpoint, manifest.step, None)
    uploaded = _Uploaded(
        job=job.id, generation=place.generation, step=manifest.step, final=False, key=place.key,
        manifest_sha=manifest_sha, bytes=manifest.bytes, save_ms=None,
    )  # fmt: skip
    _store(db, checkpoint, uploaded)
    db.event(
        CheckpointStored(checkpoint=checkpoint, step=manifest.step, bytes=manifest.bytes, promoted=True),
        team=job.team_id,
        actor="fleet",
        job=job.id,
        attempt=job.attempt,
        generation=place.generation,
        reason=CheckpointSaved("adopted", manifest.step),
    )
    return True


def object_key(job: UUID, generation: int, nonce: str) -> str:
    return f"jobs/{job}/g/{generation}/final/{nonce}"


def _next_target(db: Read, job: UUID, generation: int) -> Upload:
    """Numbered within the generation: one more than the latest that was stored."""
    keys = db.sql.scalars(
        select(CheckpointRow.object_key).where(CheckpointRow.job == job, CheckpointRow.generation == generation)
    )
    used = [int(key.rsplit("/", 1)[1]) for key in keys]
    nonce = _nonce(max(used, default=0) + 1)
    return Upload(generation, nonce, object_key(job, generation, nonce))


@dataclass(frozen=True)
class _Uploaded:
    """What a row says of the objects of a checkpoint, and of what they hold. save_ms: how long its upload took."""

    job: UUID
    generation: int
    step: int
    final: bool
    key: str
    manifest_sha: str
    bytes: int
    save_ms: int | None


def _store(db: Write, checkpoint: UUID, uploaded: _Uploaded, known: CheckpointRow | None = None) -> None:
    """Insert the row, or let it name the newer upload of the same step (a final one has further parts)."""
    content: dict[str, Any] = {
        "object_key": uploaded.key,
        "manifest_sha": uploaded.manifest_sha,
        "bytes": uploaded.bytes,
        "save_ms": uploaded.save_ms,
        "stored_at": db.now,
    }
    if known is not None:
        same = update(CheckpointRow).where(CheckpointRow.id == known.id)
        db.sql.execute(same.values(final=known.final or uploaded.final, **content))
        return
    taken_at = {"job": uploaded.job, "generation": uploaded.generation, "step": uploaded.step}
    db.sql.execute(insert(CheckpointRow).values(id=checkpoint, final=uploaded.final, **taken_at, **content))


def _require_member(db: Read, job: JobRow, machine: MachineRow, generation: int) -> None:
    """Raises AgentRefused unless the machine trained in this generation of the job."""
    member = db.sql.scalar(
        select(MemberRow).where(
            MemberRow.job == job.id, MemberRow.generation == generation, MemberRow.machine == machine.id
        )
    )
    if member is None:
        raise AgentRefused(f"This machine is not a member of generation {generation}.")


def _was_replaced(db: Read, job: UUID, request: wire.CheckpointCommit) -> bool:
    """Whether a commit is repeated after a later upload of the same step replaced it. False: its upload is the one that
    is offered; raises InvalidRequest if neither."""
    offered = _next_target(db, job, request.generation).nonce
    if len(request.nonce) == len(offered) and request.nonce < offered:
        return True
    if request.nonce != offered:
        raise InvalidRequest(
            f"{request.nonce!r} is not the upload that was offered for generation {request.generation}."
        )
    return False


def _finish(db: Write, job: JobRow, request: wire.CheckpointCommit) -> None:
    """End the job with its final checkpoint, and close its attempt."""
    reached = request.result is not None and request.result.get("goal_reached") is True
    end = EndReason.GOAL_REACHED if reached else EndReason.SUCCEEDED
    jobs.transition(db, job, JobState.ENDED, actor="fleet", reason=FinishedAtStep(request.step), end_reason=end)
    closing = transitions.move_attempt(job.id, job.attempt, AttemptState.CLOSING)
    db.sql.execute(closing.values(reason="finished", closed_at=db.now, trained=True))
    db.request_tick()


def _told_once(db: Read, machine: MachineRow, request: wire.CheckpointCommit) -> CheckpointOutlastsNotice | None:
    """Why an interruption of the machine would lose work, with the first checkpoint of a generation."""
    if request.nonce != _nonce(1) or request.reason == "final":
        return None
    stored = StoredCheckpoint(machine.type, request.bytes, request.save_s)
    timeouts = load_timeouts(db).get(machine.provider)
    return None if timeouts is None else outlasted_notice(stored, machine.market, timeouts)


def _nonce(number: int) -> str:
    """Of the checkpoint of a generation with this number, from 1."""
    return f"{number:06d}"


def _point(db: Write, job: JobRow, checkpoint: UUID, step: int, result: dict[str, Any] | None) -> None:
    values: dict[str, Any] = {"checkpoint": checkpoint}
    if result is not None:
        values |= {"result": result, "last_step": step}
    db.sql.execute(update(JobRow).where(JobRow.id == job.id, JobRow.generation == job.generation).values(**values))


def _is_open(db: Read, job: UUID, generation: int) -> bool:
    state = db.sql.scalar(
        select(GenerationRow.state).where(GenerationRow.job == job, GenerationRow.number == generation)
    )
    return state == "formed"


def _step(db: Read, job: JobRow) -> int:
    """The step of the job's present checkpoint."""
    return db.sql.scalar(select(CheckpointRow.step).where(CheckpointRow.id == job.checkpoint)) or 0


def _at_step(db: Read, job: UUID, generation: int, step: int) -> CheckpointRow | None:
    return db.sql.scalar(
        select(CheckpointRow).where(
            CheckpointRow.job == job, CheckpointRow.generation == generation, CheckpointRow.step == step
        )
    )

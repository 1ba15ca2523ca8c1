# SPDX-License-Identifier: Apache-2.0
"""The agents on the machines: their sessions, what they say, and what they are told to do."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import Update, select, update

from shoestring_core import task, wire
from shoestring_core.decide import membership, orders
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.errors import AgentRefused
from shoestring_core.spec import JobSpec
from shoestring_core.states import AttemptState, GenerationState, JobState, MachineState
from shoestring_core.store import jobs
from shoestring_core.store.db import Read, Write
from shoestring_core.store.fleet import gangs, records, work
from shoestring_core.store.tables import AttemptRow, CheckpointRow, GenerationRow, JobRow, MachineRow, MemberRow


def register(
    db: Write,
    machine_id: UUID,
    token_ok: bool,
    session_hash: str,
    address: str,
    hardware: dict[str, Any],
    timeouts: Timeouts,
) -> MachineRow | None:
    """Bind a machine's session: the first wins, the same again succeeds. None: refused, and the team is alarmed.

    Commit either way, then answer None with AgentRefused. The first generation opens once all slots have registered.
    Raises AgentRefused for a machine that doesn't exist.
    """
    found = db.sql.get(MachineRow, machine_id)
    if found is None:
        raise AgentRefused("No such machine.")
    job = records.claim(db, found.job)
    bind = update(MachineRow).where(
        MachineRow.id == machine_id, MachineRow.session_hash.is_(None), MachineRow.state.in_(("calling", "up"))
    )
    # The job's row is ours now: whoever registers for the same gang at this moment comes before or after.
    machine = records.machine(db, machine_id)
    fresh = machine.session_hash is None and machine.state in ("calling", "up")
    if not token_ok or not (fresh or hmac.compare_digest(machine.session_hash or "", session_hash)):
        why = "a wrong boot token" if not token_ok else "a second session secret"
        db.event(
            team=job.team_id,
            kind="alarm",
            actor="agent",
            reason=f"Refused {why} for a machine.",
            job=job.id,
            attempt=machine.attempt,
            ref=str(machine_id),
        )
        return None
    if not fresh:
        return machine
    attempt = records.attempt(db, job.id, machine.attempt)
    others = [row for row in records.gang(db, job.id, attempt.no) if row.id != machine_id]
    size = JobSpec.from_stored(job.spec).resources.nodes
    complete = len(others) == size - 1 and all(
        row.registered_at is not None and row.state in ("calling", "up") for row in others
    )
    generation = db.sql.get(GenerationRow, (job.id, job.generation))
    first = generation is None or generation.attempt != attempt.no
    if complete and first and records.wanted(job, attempt):
        gangs.open_generation(db, job.id, attempt.no, "the gang is complete")
    records.touched(
        db,
        bind.values(
            session_hash=session_hash,
            registered_at=db.now,
            address=address,
            hardware=hardware,
            last_report_at=db.now,
            alive_until=db.now + timeouts.machine_lease,
        ),
    )
    records.machine_event(db, job, attempt.no, machine_id, "registered")
    return records.machine(db, machine_id)


def authenticate(db: Read, machine_id: UUID, session: str) -> MachineRow:
    """The machine whose session this is. Raises AgentRefused."""
    machine = db.sql.get(MachineRow, machine_id)
    if machine is None or not hmac.compare_digest(machine.session_hash or "", wire.hash_session(session)):
        raise AgentRefused("This is not the session of that machine.")
    return machine


def renew(db: Write, machine_id: UUID, timeouts: Timeouts) -> MachineRow:
    """A sign of life. Writes the machine's row alone; what is ending is not brought back."""
    renewed = update(MachineRow).where(MachineRow.id == machine_id, MachineRow.state.in_(("calling", "up")))
    records.touched(db, renewed.values(last_report_at=db.now, alive_until=db.now + timeouts.machine_lease))
    return records.machine(db, machine_id)


def record_notice(db: Write, machine_id: UUID, at: int) -> None:
    """The provider told the machine that it will be taken at `at` (µs UTC by the machine's clock)."""
    machine = records.machine(db, machine_id)
    noticed = update(MachineRow).where(MachineRow.id == machine_id, MachineRow.notice_at.is_(None))
    if records.touched(db, noticed.values(notice_at=at)):
        records.machine_event(db, records.job(db, machine.job), machine.attempt, machine_id, "notice")
        db.hint()


def report_member(db: Write, machine_id: UUID, said: wire.MemberStatus) -> bool:
    """What a machine says about its part in a generation. True: the generation formed by it, so all orders changed.

    What is said about an older generation is kept, and moves nothing.
    """
    machine = records.machine(db, machine_id)
    job = records.claim(db, machine.job)
    member = db.sql.scalar(
        select(MemberRow).where(
            MemberRow.job == job.id, MemberRow.generation == said.generation, MemberRow.machine == machine_id
        )
    )
    if member is None:
        return False
    if said.state == "ready" and member.ready_at is None and said.generation == job.generation:
        return _ready(db, job, member, said.port)
    if said.state == "exited" and member.exited_at is None:
        exits = [end.model_dump(mode="json") for end in said.exits]
        records.touched(db, _of(member).where(MemberRow.exited_at.is_(None)).values(exited_at=db.now, exits=exits))
        db.event(
            team=job.team_id,
            kind="generation",
            actor="agent",
            job=job.id,
            attempt=machine.attempt,
            generation=said.generation,
            ref=str(machine_id),
            reason="; ".join(sorted({end.outcome for end in said.exits})),
            data={"state": "exited", "exits": exits},
        )
        db.hint()
    return False


def order(db: Read, machine_id: UUID, get_url: Callable[[str], str], timeouts: Timeouts) -> tuple[wire.Order, str]:
    """What the service wants of the machine now, and an etag that changes when that does (not when a URL is signed).

    get_url    signs an object's key for download
    """
    machine = records.machine(db, machine_id)
    job, attempt = records.job(db, machine.job), records.attempt(db, machine.job, machine.attempt)
    generation = db.sql.get(GenerationRow, (job.id, job.generation))
    members = records.members(db, job.id, job.generation) if generation and generation.attempt == attempt.no else []
    mine = next((member for member in members if member.machine == machine_id), None)
    directive = orders.decide_order(
        orders.OrderInputs(
            machine=MachineState(machine.state),
            job=JobState(job.state),
            in_latest_attempt=machine.attempt == job.attempt,
            attempt=AttemptState(attempt.state),
            generation=job.generation,
            membership=orders.Membership(GenerationState(generation.state), mine.exited_at is not None)
            if mine and generation
            else None,
            reason=job.stop_reason or attempt.reason or "",
            admit_waiting=mine is not None and _should_admit_waiting(db, job, attempt, generation, timeouts),
        )
    )
    run = None
    if directive.kind == "run" and mine and generation:
        run = _run(db, job, generation, mine, len(members), get_url)
    tag = f"{machine_id}:{machine.attempt}:{directive.kind}:{directive.generation}"
    etag = hashlib.sha256(tag.encode()).hexdigest()[:16]
    return wire.Order(kind=directive.kind, generation=directive.generation, reason=directive.reason, run=run), etag


def _should_admit_waiting(
    db: Read, job: JobRow, attempt: AttemptRow, generation: GenerationRow | None, timeouts: Timeouts
) -> bool:
    """Whether machines wait to be let in, and the generation has done a step, so that each one gets the job on."""
    if generation is None or generation.state != GenerationState.FORMED or not records.elastic(job):
        return False
    stepped = (generation.last_step or 0) > generation.start_step
    return stepped and membership.should_admit_waiting(work.look(db, attempt).machine_statuses, db.now, timeouts)


def _ready(db: Write, job: JobRow, member: MemberRow, port: int | None) -> bool:
    generation = db.sql.get(GenerationRow, (job.id, member.generation))
    if generation is None or generation.state != GenerationState.FORMING:
        return False
    others = [row for row in records.members(db, job.id, generation.no) if row.node_rank != member.node_rank]
    complete = all(row.ready_at is not None for row in others)
    attempt = records.attempt(db, job.id, generation.attempt)
    if complete and records.wanted(job, attempt):
        _form(db, job, generation, [*others, member], {member.node_rank: port})
    records.touched(db, _of(member).where(MemberRow.ready_at.is_(None)).values(ready_at=db.now, port=port))
    return complete


def _form(
    db: Write, job: JobRow, generation: GenerationRow, members: list[MemberRow], ports: dict[int, int | None]
) -> None:
    first = min(members, key=lambda row: row.node_rank)
    address = records.machine(db, first.machine).address
    port = ports.get(first.node_rank, first.port)
    if job.state == JobState.LAUNCHING:
        jobs.transition(db, job, JobState.RUNNING, actor="fleet", reason=f"generation {generation.no} formed")
    forming = update(GenerationRow).where(
        GenerationRow.job == job.id, GenerationRow.no == generation.no, GenerationRow.state == "forming"
    )
    records.touched(db, forming.values(state=GenerationState.FORMED, master=f"{address}:{port}", formed_at=db.now))
    records.generation_event(db, job, generation.no, generation.attempt, "formed")
    db.hint()


def _run(
    db: Read, job: JobRow, generation: GenerationRow, mine: MemberRow, nodes: int, get_url: Callable[[str], str]
) -> wire.LaunchConfig:
    address, _, port = (generation.master or ":0").rpartition(":")
    resume = _checkpoint(db, generation.start_checkpoint, get_url)
    return wire.LaunchConfig(
        node_rank=mine.node_rank,
        nnodes=nodes,
        nproc_per_node=mine.nproc,
        master_addr=address,
        master_port=int(port),
        task=task.of_spec(JobSpec.from_stored(job.spec), job=str(job.id), generation=generation.no)
        | ({"skip": job.skips} if job.skips else {}),
        resume=resume,
        init=None if resume else _checkpoint(db, job.init, get_url),
        skip_torchrun=records.elastic(job),
    )


def _checkpoint(db: Read, checkpoint: UUID | None, get_url: Callable[[str], str]) -> wire.CheckpointDownload | None:
    found = db.sql.get(CheckpointRow, checkpoint) if checkpoint else None
    if found is None:
        return None
    return wire.CheckpointDownload(
        step=found.step,
        data_url=get_url(f"{found.object_key}/data"),
        manifest_url=get_url(f"{found.object_key}/manifest.json"),
        manifest_sha256=found.manifest_sha,
    )


def _of(member: MemberRow) -> Update:
    return update(MemberRow).where(
        MemberRow.job == member.job, MemberRow.generation == member.generation, MemberRow.node_rank == member.node_rank
    )

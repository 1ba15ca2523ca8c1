# SPDX-License-Identifier: Apache-2.0
"""The agents on the machines: their sessions, their reports, and the orders they get."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import Update, select, update

from shoestring_core import task, wire
from shoestring_core.decide import orders, rendezvous
from shoestring_core.decide.billing import free_if_left_until
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.errors import AgentRefused
from shoestring_core.events import AgentReport, Alarm, GenerationChange
from shoestring_core.spec import JobSpec
from shoestring_core.states import AttemptState, GenerationState, JobState, MachineState
from shoestring_core.store import jobs, transitions
from shoestring_core.store.fleet import active_attempts, gangs, rows
from shoestring_core.store.fleet.billing import evidence
from shoestring_core.store.tables import AttemptRow, CheckpointRow, GenerationRow, JobRow, MachineRow, MemberRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording import attempts
from shoestring_core.wording.agents import of_event
from shoestring_core.wording.jobs import GenerationFormed
from shoestring_core.wording.machines import LeftToProvider, PreemptionAnnounced, RanksExited, SecretRefused


def register(
    db: Write,
    machine_id: UUID,
    token_ok: bool,
    session_hash: str,
    address: str,
    hardware: wire.Hardware,
    timeouts: Timeouts,
) -> MachineRow | None:
    """Bind a machine's session: the first wins, the same again succeeds. None: refused, and the team is alarmed.

    Commit either way, then answer None with AgentRefused. The first generation opens once all slots have registered.
    Raises AgentRefused for a machine that doesn't exist.
    """
    found = db.sql.get(MachineRow, machine_id)
    if found is None:
        raise AgentRefused("No such machine.")
    job = rows.lock_job(db, found.job)
    bind = update(MachineRow).where(
        MachineRow.id == machine_id, MachineRow.session_hash.is_(None), MachineRow.state.in_(("launching", "running"))
    )
    # The job's row is locked: concurrent registrations of its gang are serialized.
    machine = rows.load_machine(db, machine_id)
    fresh = machine.session_hash is None and machine.state in ("launching", "running")
    if not token_ok or not (fresh or hmac.compare_digest(machine.session_hash or "", session_hash)):
        db.event(
            Alarm(alarm="second_session" if token_ok else "wrong_boot_token", machine=machine_id),
            team=job.team_id,
            actor="agent",
            reason=SecretRefused("second_session" if token_ok else "boot_token"),
            job=job.id,
            attempt=machine.attempt,
        )
        return None
    if not fresh:
        return machine
    attempt = rows.load_attempt(db, job.id, machine.attempt)
    if _completes_gang(db, job, machine) and rows.is_wanted(job, attempt):
        gangs.open_generation(db, job.id, attempt.number, attempts.GangComplete())
    rows.try_update(
        db,
        bind.values(
            session_hash=session_hash,
            registered_at=db.now,
            address=address,
            hardware=hardware.model_dump(mode="json"),
            last_report_at=db.now,
            alive_until=db.now + timeouts.machine_lease,
        ),
    )
    rows.record_machine_event(db, job, attempt.number, machine_id, "registered")
    return rows.load_machine(db, machine_id)


def _completes_gang(db: Read, job: JobRow, machine: MachineRow) -> bool:
    """Whether a machine that registers is the last of its attempt, which has had no generation yet."""
    others = [row for row in rows.load_gang(db, job.id, machine.attempt) if row.id != machine.id]
    size = JobSpec.from_stored(job.spec).resources.nodes
    complete = len(others) == size - 1 and all(
        row.registered_at is not None and row.state in ("launching", "running") for row in others
    )
    generation = db.sql.get(GenerationRow, (job.id, job.generation))
    return complete and (generation is None or generation.attempt != machine.attempt)


def load_booting(db: Read, machine_id: UUID) -> MachineRow:
    """Raises AgentRefused for a machine that has registered, or does not run."""
    machine = db.sql.get(MachineRow, machine_id)
    if machine is None or machine.registered_at is not None or machine.state not in ("launching", "running"):
        raise AgentRefused("No such machine boots.")
    return machine


def record_boot(db: Write, report: wire.BootReport) -> None:
    """Record how far a machine has booted. Raises AgentRefused for one that has registered, or does not run."""
    machine = load_booting(db, report.machine)
    facts: dict[str, Any] = {"hello_at": machine.hello_at or db.now}
    if report.driver:
        facts["driver"] = report.driver
    if report.failure:
        facts["boot_failure"] = report.model_dump(include={"failure", "phase", "message"})
        db.request_tick()
    rows.try_update(db, update(MachineRow).where(MachineRow.id == machine.id).values(**facts))
    told = report.model_dump(include={"phase", "message", "failure", "seconds"})
    event = AgentReport.model_validate({**told, "event": "boot", "machine": machine.id, "at": db.now / S, "step": None})
    job = rows.load_job(db, machine.job)
    reason = of_event("boot", told)
    db.event(event, team=job.team_id, actor="agent", reason=reason, job=job.id, attempt=machine.attempt)


def authenticate(db: Read, machine_id: UUID, session: str) -> MachineRow:
    """The machine whose session this is. Raises AgentRefused."""
    machine = db.sql.get(MachineRow, machine_id)
    if machine is None or not hmac.compare_digest(machine.session_hash or "", wire.hash_session(session)):
        raise AgentRefused("This is not the session of that machine.")
    return machine


def renew_lease(db: Write, machine_id: UUID, timeouts: Timeouts) -> MachineRow:
    """Extend a machine's lease. Writes its row alone; one that is terminating stays so."""
    renewed = update(MachineRow).where(MachineRow.id == machine_id, MachineRow.state.in_(("launching", "running")))
    rows.try_update(db, renewed.values(last_report_at=db.now, alive_until=db.now + timeouts.machine_lease))
    return rows.load_machine(db, machine_id)


def record_notice(db: Write, machine_id: UUID, at: int) -> None:
    """The provider announced to the machine that it is preempted at `at` (µs UTC by the machine's clock)."""
    machine = rows.load_machine(db, machine_id)
    noticed = update(MachineRow).where(MachineRow.id == machine_id, MachineRow.notice_at.is_(None))
    refused = {"refusal": RefusalKind.INTERRUPTED, "refused_at": db.now}
    if rows.try_update(db, noticed.values(notice_at=at, **refused)):
        rows.record_machine_event(
            db, rows.load_job(db, machine.job), machine.attempt, machine_id, "notice", reason=PreemptionAnnounced()
        )
        _leave_to_provider(db, machine_id)
        db.request_tick()


def record_member_status(db: Write, machine_id: UUID, status: wire.MemberStatus) -> bool:
    """Record what a machine reports as member of a generation. True: the generation formed, so all orders changed.

    Reports about an older generation are recorded without effect.
    """
    machine = rows.load_machine(db, machine_id)
    job = rows.lock_job(db, machine.job)
    member = db.sql.scalar(
        select(MemberRow).where(
            MemberRow.job == job.id, MemberRow.generation == status.generation, MemberRow.machine == machine_id
        )
    )
    if member is None:
        return False
    if status.state == "ready" and member.ready_at is None and status.generation == job.generation:
        return _record_ready(db, job, member, status.port)
    if status.state == "exited" and member.exited_at is None:
        exits = [one.model_dump(mode="json") for one in status.exits]
        rows.try_update(
            db, _update_member(member).where(MemberRow.exited_at.is_(None)).values(exited_at=db.now, exits=exits)
        )
        db.event(
            GenerationChange(state="exited", machine=machine_id, exits=tuple(status.exits)),
            team=job.team_id,
            actor="agent",
            job=job.id,
            attempt=machine.attempt,
            generation=status.generation,
            reason=RanksExited(tuple(sorted({end.outcome for end in status.exits}))),
        )
        _leave_to_provider(db, machine_id)
        db.request_tick()
    return False


def _leave_to_provider(db: Write, machine_id: UUID) -> None:
    """Let a machine live on, though its work is over, if its provider has given notice and makes it free.

    Its work is over by its agent's word: its ranks drained or finished, which an agent reports only once their
    checkpoint is committed, and one that reports a notice starts no others. The slots of an elastic gang are filled
    within their attempt, so its machines end at once.
    """
    machine = rows.load_machine(db, machine_id)
    job = rows.load_job(db, machine.job)
    generation = db.sql.get(GenerationRow, (job.id, job.generation))
    if machine.notice_at is None or rows.is_elastic(job):
        return
    if generation is None or generation.state != GenerationState.FORMED:
        return
    members = rows.load_members(db, job.id, generation.number)
    exits = next((member.exits for member in members if member.machine == machine_id), None)
    if not exits or any(end["outcome"] not in ("drained", "finished") for end in exits):
        return
    until = free_if_left_until(evidence(machine), machine.notice_at)
    if until is None or until <= db.now:
        return
    left = update(MachineRow).where(
        MachineRow.id == machine_id, MachineRow.left_until.is_(None), MachineRow.state.in_(("launching", "running"))
    )
    if rows.try_update(db, left.values(left_until=until)):
        rows.record_machine_event(db, job, machine.attempt, machine_id, "left", reason=LeftToProvider(until))


def current_order(
    db: Read, machine_id: UUID, get_url: Callable[[str], str], timeouts: Timeouts
) -> tuple[wire.Order, str]:
    """The machine's current order, and an ETag that changes with the order (not when a URL is signed again).

    get_url    signs an object's key for download
    """
    machine = rows.load_machine(db, machine_id)
    job, attempt = rows.load_job(db, machine.job), rows.load_attempt(db, machine.job, machine.attempt)
    generation = db.sql.get(GenerationRow, (job.id, job.generation))
    members = (
        rows.load_members(db, job.id, job.generation) if generation and generation.attempt == attempt.number else []
    )
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
        device = rows.offered_hardware(machine).device
        run = _launch_config(db, job, generation, mine, len(members), device, get_url)
    tag = f"{machine_id}:{machine.attempt}:{directive.kind}:{directive.generation}"
    etag = hashlib.sha256(tag.encode()).hexdigest()[:16]
    return wire.Order(kind=directive.kind, generation=directive.generation, reason=directive.reason, run=run), etag


def _should_admit_waiting(
    db: Read, job: JobRow, attempt: AttemptRow, generation: GenerationRow | None, timeouts: Timeouts
) -> bool:
    """Whether machines wait to join and the generation has done a step, so that each generation makes progress."""
    if generation is None or generation.state != GenerationState.FORMED or not rows.is_elastic(job):
        return False
    if (generation.last_step or 0) <= generation.start_step:
        return False
    statuses = active_attempts.load_active_attempt(db, attempt).machine_statuses
    return rendezvous.should_admit_waiting(statuses, db.now, timeouts)


def _record_ready(db: Write, job: JobRow, member: MemberRow, port: int | None) -> bool:
    generation = db.sql.get_one(GenerationRow, (job.id, member.generation))
    if generation.state != GenerationState.FORMING:
        return False
    others = [row for row in rows.load_members(db, job.id, generation.number) if row.node_rank != member.node_rank]
    complete = all(row.ready_at is not None for row in others)
    attempt = rows.load_attempt(db, job.id, generation.attempt)
    if complete and rows.is_wanted(job, attempt):
        _form_generation(db, job, generation, [*others, member], {member.node_rank: port})
    rows.try_update(db, _update_member(member).where(MemberRow.ready_at.is_(None)).values(ready_at=db.now, port=port))
    return complete


def _form_generation(
    db: Write, job: JobRow, generation: GenerationRow, members: list[MemberRow], ports: dict[int, int | None]
) -> None:
    first = min(members, key=lambda row: row.node_rank)
    address = rows.load_machine(db, first.machine).address
    port = ports.get(first.node_rank, first.port)
    if job.state == JobState.LAUNCHING:
        jobs.transition(db, job, JobState.RUNNING, actor="fleet", reason=GenerationFormed(generation.number))
    formed = transitions.move_generation(job.id, GenerationState.FORMED).where(
        GenerationRow.number == generation.number
    )
    rows.try_update(db, formed.values(master=f"{address}:{port}", formed_at=db.now))
    rows.record_generation_event(db, job, generation.number, generation.attempt, GenerationState.FORMED)
    db.request_tick()


def _launch_config(
    db: Read,
    job: JobRow,
    generation: GenerationRow,
    mine: MemberRow,
    nodes: int,
    device: task.Device,
    get_url: Callable[[str], str],
) -> wire.LaunchConfig:
    address, _, port = (generation.master or ":0").rpartition(":")
    resume = _checkpoint(db, generation.start_checkpoint, get_url)
    return wire.LaunchConfig(
        node_rank=mine.node_rank,
        nnodes=nodes,
        nproc_per_node=mine.nproc,
        master_addr=address,
        master_port=int(port),
        task=task.from_spec(
            JobSpec.from_stored(job.spec),
            job=str(job.id),
            generation=generation.number,
            skip=job.skipped_step_spans or (),
            device=device,
        ),
        resume=resume,
        init=None if resume else _checkpoint(db, job.init_checkpoint, get_url),
    )


def _checkpoint(db: Read, checkpoint: UUID | None, get_url: Callable[[str], str]) -> wire.CheckpointDownload | None:
    row = db.sql.get(CheckpointRow, checkpoint) if checkpoint else None
    if row is None:
        return None
    return wire.CheckpointDownload(
        step=row.step,
        data_url=get_url(f"{row.object_key}/data"),
        manifest_url=get_url(f"{row.object_key}/manifest.json"),
        manifest_sha256=row.manifest_sha,
    )


def _update_member(member: MemberRow) -> Update:
    return update(MemberRow).where(
        MemberRow.job == member.job, MemberRow.generation == member.generation, MemberRow.node_rank == member.node_rank
    )

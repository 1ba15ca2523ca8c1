# SPDX-License-Identifier: Apache-2.0
"""Reports: the numbered batches of points, logs and events that machines send, each stored exactly once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import case, func, select, update

from shoestring_core import wire
from shoestring_core.errors import BatchGap, InvalidRequest, NotFound
from shoestring_core.events import AgentReport
from shoestring_core.store import events, logs, metrics
from shoestring_core.store.logs import StoredLogLine
from shoestring_core.store.metrics import MetricColumns, StoredCurve
from shoestring_core.store.tables import AttemptRow, GenerationRow, JobRow, MachineRow, MemberRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording.agents import of_event

HOUR_US = 3_600_000_000
MAX_EVENT_BYTES = 20_000


def accept_batch(db: Write, machine_id: UUID, batch: wire.ReportBatch, *, log_quota: int) -> int:
    """Store a machine's next batch and return the number of the last one stored. A repeated batch changes nothing.

    log_quota   log bytes accepted of one job in an hour; the rest is dropped and the job's log marked as truncated
    raises      BatchGap (`expected` is the next number); InvalidRequest for a payload that will never be accepted
    """
    machine = db.sql.get(MachineRow, machine_id)
    if machine is None:
        raise NotFound(f"There is no machine {machine_id}.")
    if batch.seq <= machine.acked_seq:
        return machine.acked_seq
    if batch.seq != machine.acked_seq + 1:
        raise _gap(machine.acked_seq)
    job = db.sql.get_one(JobRow, machine.job)
    columns, log_chunks = metrics.columns_by_name(batch.points), logs.decode_chunks(batch.logs)
    training = {name: column for name, column in columns.items() if not name.startswith(metrics.SYSTEM_PREFIX)}
    generation = _generation(db, job, machine, batch.generation) if training else None

    first_at = _first_measured_at(db, generation, training) if generation is not None else db.now
    log_size = sum(len(chunk.data) for chunk in log_chunks)
    log_accepted = _update_job(db, job, batch, training, first_at, log_size, log_quota)
    if generation is not None:
        _update_generation(db, generation, training, first_at)
    acked = update(MachineRow).where(MachineRow.id == machine.id, MachineRow.acked_seq == batch.seq - 1)
    if db.execute(acked.values(acked_seq=batch.seq)) != 1:  # the same batch came twice at once, and the other was first
        raise _gap(batch.seq - 1)
    for event in batch.events:
        _record_event(db, job, machine, batch.generation, event)
    announced = metrics.append(db, job, columns, generation=batch.generation, source=machine.id, seq=batch.seq)
    if log_chunks and log_accepted:
        logs.append(db, machine.id, batch.seq, log_chunks)
        if not announced:
            events.record_batch(db, job, machine.id, batch.seq, batch.generation)
    return batch.seq


def load_batch(db: Read, source: UUID, seq: int) -> tuple[list[StoredCurve], list[StoredLogLine]]:
    """One batch, for the live stream: its points as reported, and, of a machine, the log lines that end in it."""
    return metrics.load_batch_curves(db, source, seq), logs.load_batch_lines(db, source, seq)


def _gap(acked: int) -> BatchGap:
    return BatchGap(f"Batch {acked + 1} is expected next.", hint="Send it first.", expected=acked + 1)


def _generation(db: Read, job: JobRow, machine: MachineRow, number: int) -> GenerationRow:
    """The generation that points belong to. Only its members may add to its curves."""
    generation = db.sql.get(GenerationRow, (job.id, number))
    member = select(MemberRow.node_rank).where(
        MemberRow.job == job.id, MemberRow.generation == number, MemberRow.machine == machine.id
    )
    if generation is None or db.sql.scalar(member) is None:
        raise InvalidRequest(f"This machine is not a member of generation {number}.")
    return generation


def _first_measured_at(db: Read, generation: GenerationRow, columns: Mapping[str, MetricColumns]) -> int:
    """When the earliest point was measured by the machine's clock, clipped to what ours allows; µs UTC."""
    earliest = min(min(column.times) for column in columns.values())
    return min(db.now, max(generation.formed_at or db.now, int(earliest * 1e6)))


def _update_job(
    db: Write,
    job: JobRow,
    batch: wire.ReportBatch,
    columns: Mapping[str, MetricColumns],
    first_at: int,
    log_size: int,
    log_quota: int,
) -> bool:
    """Update the job's progress and log quota. Returns whether the batch's logs are within the quota."""
    changes: dict[str, Any] = {}
    if columns:
        changes["last_step"] = _larger(JobRow.last_step, _last_step(columns))
        if job.first_step_at is None:
            changes["first_step_at"] = func.coalesce(JobRow.first_step_at, first_at)
        if batch.generation >= job.generation:
            latest = {name: column.latest_value for name, column in columns.items()}
            changes["latest"] = dict(itertools.islice((job.latest | latest).items(), metrics.MAX_SERIES))
            if (epoch := metrics.epoch_milli(latest)) is not None:
                changes["last_epoch_milli"] = epoch
    for event in batch.events:
        if batch.generation >= job.generation and (total := _steps_total(event)) is not None:
            changes["steps_total"] = total
        if event.kind == "log_quota":
            changes["log_truncated"] = True
    log_accepted = True
    if log_size:
        hour = db.now // HOUR_US
        used = job.log_bytes if job.log_hour == hour else 0
        log_accepted = used + log_size <= log_quota
        total_bytes = case((JobRow.log_hour == hour, JobRow.log_bytes + log_size), else_=log_size)
        changes |= {"log_hour": hour, "log_bytes": total_bytes} if log_accepted else {"log_truncated": True}
    if changes:
        db.sql.execute(update(JobRow).where(JobRow.id == job.id).values(**changes))
    return log_accepted


def _steps_total(event: wire.AgentEvent) -> int | None:
    """How many steps the run has, if the event says so; of a run that its goal ends early, those that it did."""
    total = event.step if event.kind == "exporting" else event.data.get("steps_total")
    return total if event.kind in ("started", "exporting") and type(total) is int and 0 < total < 2**62 else None


def _update_generation(
    db: Write, generation: GenerationRow, columns: Mapping[str, MetricColumns], first_at: int
) -> None:  # fmt: skip
    """The generation's last step; and, with its first, that its attempt has trained."""
    changes: dict[str, Any] = {"last_step": _larger(GenerationRow.last_step, _last_step(columns))}
    if generation.first_step_at is None:
        attempt = (AttemptRow.job == generation.job, AttemptRow.number == generation.attempt)
        db.sql.execute(update(AttemptRow).where(*attempt).values(trained=True))
        changes["first_step_at"] = func.coalesce(GenerationRow.first_step_at, first_at)
    row = (GenerationRow.job == generation.job, GenerationRow.number == generation.number)
    db.sql.execute(update(GenerationRow).where(*row).values(**changes))


def _last_step(columns: Mapping[str, MetricColumns]) -> int:
    return max(max(column.steps) for column in columns.values())


def _larger(column: Any, value: int) -> Any:
    """SQL's two-argument maximum, whose name differs between SQLite and PostgreSQL."""
    return case((func.coalesce(column, -1) < value, value), else_=column)


def _record_event(db: Write, job: JobRow, machine: MachineRow, generation: int, event: wire.AgentEvent) -> None:
    logged = event.data
    if len(as_text := json.dumps(logged)) > MAX_EVENT_BYTES:
        logged = {"truncated": as_text[:2000]}
    ours = {"event": event.kind, "machine": machine.id, "at": event.at, "step": event.step}
    db.event(
        AgentReport.model_validate(logged | ours),
        team=job.team_id, actor="agent", reason=of_event(event.kind, event.data), job=job.id, attempt=machine.attempt,
        generation=generation or None,
    )  # fmt: skip

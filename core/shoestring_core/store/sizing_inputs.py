# SPDX-License-Identifier: Apache-2.0
"""Inputs of the choice of machines: measurements of the team's earlier runs, current offers, and the budget left."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from sqlalchemy import ColumnElement, bindparam, func, select, tuple_

from shoestring_core import results
from shoestring_core.decide import sizing, workload
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.scaling import MAX_RUNS_PER_COUNT, Measurement
from shoestring_core.spec import JobSpec
from shoestring_core.states import EndReason, JobStatus
from shoestring_core.store import ledger, metrics
from shoestring_core.store.fleet import rows
from shoestring_core.store.fleet.offers import load_known
from shoestring_core.store.tables import (
    GenerationRow,
    JobRow,
    MachineRow,
    MemberRow,
    MetricChunkRow,
    SeriesRow,
)
from shoestring_core.store.transactions import Read

MAX_JOBS = 200
"""Of the team's newest jobs of a recipe."""

MIN_STEPS, MIN_S = 20, 0.5
"""A generation that trained less measures nothing."""


def load_sizing_inputs(db: Read, team: UUID, user: UUID, spec: JobSpec) -> sizing.SizingInputs:
    """All inputs of the choice of machines for `spec`. Measurements come from the team's own jobs alone."""
    known = db.once(load_known)
    left, budget_name = _left(db, team, user, spec.limits.cost)
    return sizing.SizingInputs(
        requirements=replace(
            Requirements.of(spec.resources, reserved_time=spec.reserved_time, rate=spec.limits.rate), nodes=1
        ),
        time_limit_s=spec.limits.time,
        requested_nodes=spec.resources.requested_nodes,
        epochs=workload.epochs(spec),
        evaluations=workload.evaluations(spec),
        processes=spec.resources.procs or 1,
        min_batch=workload.min_batch(spec),
        offers=known.offers,
        budget_left=left,
        budget_name=budget_name,
        measurements=load_measurements(db, team, spec),
        timeouts=known.timeouts,
    )


def has_trained(db: Read, team: UUID, recipe: str) -> bool:
    """Whether the team has measurements of the recipe at all: each submission asks, so it has to be cheap."""
    return db.row(_TRAINED, team=team, recipe=recipe) is not None


def load_measurements(db: Read, team: UUID, spec: JobSpec) -> tuple[Measurement, ...]:
    """Measurements of earlier runs of the same work, on machines of the provider that the spec names, newest first."""
    fingerprint, provider = workload.fingerprint(spec), spec.resources.provider
    ran = select(JobRow).where(
        JobRow.team_id == team, JobRow.first_step_at.is_not(None), JobRow.spec["recipe"].as_string() == spec.recipe
    )
    newest = db.sql.scalars(ran.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(MAX_JOBS))
    same = [job for job in newest if workload.fingerprint(JobSpec.from_stored(job.spec)) == fingerprint]
    if not same:
        return ()
    ids = [job.id for job in same]
    generations = rows.group_by_job(
        db.sql.scalars(select(GenerationRow).where(GenerationRow.job.in_(ids)).order_by(GenerationRow.number.desc()))
    )
    machines: dict[tuple[UUID, int], list[MachineRow]] = defaultdict(list)
    query = (
        select(MemberRow, MachineRow).join(MachineRow, MachineRow.id == MemberRow.machine).where(MemberRow.job.in_(ids))
    )
    for member, machine in db.sql.execute(query):
        machines[member.job, member.generation].append(machine)
    timelines = _timelines(db, ids)
    complete_only = workload.has_phases(spec)
    measured = (
        _measure(job, row, machines[job.id, row.number], timelines[job.id, row.number])
        for job in same
        for row in generations[job.id]
        if (job.id, row.number) in timelines
        and all(provider in (None, machine.provider) for machine in machines[job.id, row.number])
    )
    return tuple(_newest(run for run in measured if run is not None and (run.complete or not complete_only)))


def _newest(measured: Iterable[Measurement]) -> Iterable[Measurement]:
    """The newest of each machine type and node count."""
    counts: Counter[tuple[str, int]] = Counter()
    for run in measured:
        counts[run.type, run.nodes] += 1
        if counts[run.type, run.nodes] <= MAX_RUNS_PER_COUNT:
            yield run


@dataclass
class _Timeline:
    """(step, Unix seconds, epoch) of a generation's first and last point; evaluation seconds by step."""

    first: tuple[int, float, float]
    last: tuple[int, float, float]
    evaluation: dict[int, float] = field(default_factory=dict)


def _measure(
    job: JobRow, row: GenerationRow, machines: Sequence[MachineRow], timeline: _Timeline
) -> Measurement | None:
    """The measurement of a generation; None if it was too short, or of machines of several types."""
    (step, begun, epoch), (last_step, ended, last_epoch) = timeline.first, timeline.last
    evaluation = {at: seconds for at, seconds in timeline.evaluation.items() if step < at <= last_step}
    trained_s = ended - begun - sum(evaluation.values())
    too_short = last_step - step < MIN_STEPS or trained_s < MIN_S or last_epoch <= epoch
    if too_short or len({machine.type for machine in machines}) != 1:
        return None
    succeeded = job.end_reason is not None and EndReason(job.end_reason).status is JobStatus.SUCCEEDED
    finished = succeeded and row.number == job.generation
    final_s = evaluation.pop(last_step, 0.0) if finished else 0.0
    fresh = row.start_step == 0 and row.formed_at is not None
    launched = min((machine.launched_at for machine in machines if machine.launched_at), default=None)
    terminated = max((machine.ended_at or 0 for machine in machines), default=0)
    return Measurement(
        job=job.id,
        generation=row.number,
        type=machines[0].type,
        nodes=len(machines),
        epochs=last_epoch - epoch,
        epoch_s=trained_s / (last_epoch - epoch),
        evaluation_s=sum(evaluation.values()) / len(evaluation) if evaluation else None,
        boot_s=_seconds(launched, row.formed_at) if row.number == 1 else None,
        startup_s=_seconds(row.formed_at, row.first_step_at) if fresh else None,
        finish_s=max(0.0, (job.ended_at or 0) / 1e6 - (ended - final_s)) if finished else None,
        teardown_s=_seconds(job.ended_at, terminated)
        if finished and all(machine.ended_at for machine in machines)
        else None,
        complete=finished and fresh and job.end_reason == EndReason.SUCCEEDED,
    )


def _seconds(begin: int | None, end: int | None) -> float | None:
    """From one moment to another, µs UTC."""
    return None if begin is None or end is None else max(0, end - begin) / 1e6


def _timelines(db: Read, jobs: Sequence[UUID]) -> Mapping[tuple[UUID, int], _Timeline]:
    """By job and generation. Of the curve of epochs, which has every step, only the two ends are read."""
    query = select(
        SeriesRow.job,
        MetricChunkRow.generation,
        func.min(MetricChunkRow.first_step),
        func.max(MetricChunkRow.last_step),
    )
    query = query.join(MetricChunkRow, MetricChunkRow.series == SeriesRow.id).where(
        SeriesRow.job.in_(jobs), SeriesRow.name == "epoch"
    )
    ends = list(db.sql.execute(query.group_by(SeriesRow.job, MetricChunkRow.generation)))
    firsts, lasts = (
        [(job, number, first) for job, number, first, _ in ends],
        [(job, number, last) for job, number, _, last in ends],
    )
    points: dict[tuple[UUID, int], list[tuple[int, float, float]]] = defaultdict(list)
    for column, edges in ((MetricChunkRow.first_step, firsts), (MetricChunkRow.last_step, lasts)):
        for job, chunk in _chunks(
            db, "epoch", jobs, tuple_(SeriesRow.job, MetricChunkRow.generation, column).in_(edges)
        ):
            points[job, chunk.generation] += metrics.unpack(chunk)
    timelines = {key: _Timeline(min(own), max(own)) for key, own in points.items()}
    for job, chunk in _chunks(db, results.EVALUATION_S, jobs):
        if (job, chunk.generation) in timelines:
            timelines[job, chunk.generation].evaluation |= {at: seconds for at, _, seconds in metrics.unpack(chunk)}
    return timelines


def _chunks(
    db: Read, name: str, jobs: Sequence[UUID], *conditions: ColumnElement[bool]
) -> Iterable[tuple[UUID, MetricChunkRow]]:
    """(job, chunk) of the jobs' series of that name."""
    query = select(SeriesRow.job, MetricChunkRow).join(MetricChunkRow, MetricChunkRow.series == SeriesRow.id)
    return db.sql.execute(query.where(SeriesRow.job.in_(jobs), SeriesRow.name == name, *conditions))


def _left(db: Read, team: UUID, user: UUID, limit: int | None) -> tuple[int | None, str]:
    """The least that any limit of the job or above it leaves, and that limit's owner. Money held by others isn't
    subtracted: it is released or can be waited for. None: nothing is limited."""
    paying = ledger.paying_accounts(db, team, user)
    remaining = [(max(0, row.limit_micro - row.posted), row) for row in paying if row.limit_micro is not None]
    left, tightest = min(remaining, key=lambda pair: pair[0], default=(None, None))
    if limit is not None and (left is None or limit <= left):
        return limit, "limits.cost"
    return left, ledger.title(db, tightest) if tightest else ""


_TRAINED = (
    select(JobRow.id)
    .where(
        JobRow.team_id == bindparam("team"),
        JobRow.first_step_at.is_not(None),
        JobRow.spec["recipe"].as_string() == bindparam("recipe"),
    )
    .limit(1)
)

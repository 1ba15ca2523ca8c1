# SPDX-License-Identifier: Apache-2.0
"""Jobs."""

from __future__ import annotations

from shoestring_core import rest, wording
from shoestring_core.decide.progress import remaining_s
from shoestring_core.states import DesiredState, EndReason, GenerationState, JobState, JobStatus
from shoestring_core.store.queries import JobRows
from shoestring_core.store.tables import GenerationRow, JobRow

from shoestring_api.serializers.costs import serialize_cost
from shoestring_api.serializers.statuses import status_of, wait_detail_of, wait_reason_of
from shoestring_api.serializers.stored import read_mapping, read_numbers, read_texts
from shoestring_api.serializers.times import to_datetime


def serialize_job(rows: JobRows, now: int) -> rest.Job:
    row = rows.job
    end_reason = EndReason(row.end_reason) if row.end_reason else None
    detail = row.end_detail if end_reason else wait_detail_of(rows)
    spec = read_mapping(row.spec)
    recipe = spec.get("recipe")
    return rest.Job(
        id=row.id,
        name=row.name,
        team=rows.team,
        user=rows.user,
        recipe=recipe if isinstance(recipe, str) else None,
        state=JobState(row.state),
        status=JobStatus.of(JobState(row.state), end_reason),
        status_text=wording.sentence(status_of(rows)),
        wait_reason=wait_reason_of(rows),
        queue_position=rows.queue_position,
        end_reason=end_reason,
        reason=rest.Reason.from_stored(detail),
        desired_state=DesiredState(row.desired_state),
        attempt=row.attempt,
        generation=row.generation,
        progress=compute_progress(row, rows.generations, now),
        latest=read_numbers(row.latest),
        result=row.result if isinstance(row.result, dict) else None,
        cost=serialize_cost(rows, now),
        spec=spec,
        sizing=rest.Reason.from_stored(read_mapping(row.sizing).get("reason")),
        deadline=rest.Reason.of(rows.deadline) if rows.deadline else None,
        outlasts_notice=rest.Reason.from_stored(read_mapping(row.quote).get("outlasts_notice")),
        tags=read_texts(spec.get("tags")),
        retried_from=row.retried_from,
        created_at=to_datetime(row.created_at),
        started_at=to_datetime(row.started_at),
        first_step_at=to_datetime(row.first_step_at),
        ended_at=to_datetime(row.ended_at),
        settled_at=to_datetime(row.settled_at),
    )


def compute_progress(row: JobRow, generations: list[GenerationRow], now: int) -> rest.Progress:
    """Return the progress on the merged curve: the current generation's step, without rolled-back steps."""
    current = generations[-1] if generations else None
    step = max(current.start_step, current.last_step or 0) if current else 0
    epoch = row.last_epoch_milli / 1000 if row.last_epoch_milli is not None else None
    total = row.steps_total
    eta_s = None
    if current and current.state == GenerationState.FORMED:
        eta_s = remaining_s(total, step, current.start_step, current.first_step_at, now)
    fraction = min(1.0, step / total) if total else None
    return rest.Progress(
        step=step, steps_total=total, epoch=epoch, fraction=fraction, eta_s=None if eta_s is None else round(eta_s, 1)
    )

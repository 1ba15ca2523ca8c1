# SPDX-License-Identifier: Apache-2.0
"""Attempts, their generations and machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

from shoestring_core import money, rest
from shoestring_core.states import AttemptState, GenerationState, MachineState
from shoestring_core.store import metrics
from shoestring_core.store.fleet.rows import ALIVE
from shoestring_core.store.queries import JobRows
from shoestring_core.store.tables import AttemptRow, GenerationRow, MachineRow
from shoestring_core.wording.machines import LeftToProvider

from shoestring_api.serializers.costs import machine_bill, total
from shoestring_api.serializers.jobs import compute_progress
from shoestring_api.serializers.times import to_datetime


def serialize_attempts(rows: JobRows, attempts: Iterable[AttemptRow], now: int) -> rest.AttemptList:
    generations = serialize_generations(rows.generations)
    return rest.AttemptList(
        attempts=[
            rest.Attempt(
                number=row.number,
                state=AttemptState(row.state),
                reason=row.reason,
                trained=row.trained,
                machines=[
                    serialize_machine(machine, rows.posted, now)
                    for machine in rows.machines
                    if machine.attempt == row.number
                ],
                generations=[generation for generation in generations if generation.attempt == row.number],
                opened_at=to_datetime(row.opened_at),
                closed_at=to_datetime(row.closed_at),
            )
            for row in attempts
        ],
        steps=compute_progress(rows.job, rows.generations, now).step,
        rolled_back_steps=sum(generation.rolled_back_steps for generation in generations),
    )


def serialize_generations(rows: list[GenerationRow]) -> list[rest.Generation]:
    owned = metrics.owned_steps(rows)
    return [_serialize_generation(row, owned[row.number].last) for row in rows]


def _serialize_generation(row: GenerationRow, next_start: int | None) -> rest.Generation:
    """`next_start`: the step from which a later generation replaced this one's steps; None if none did."""
    last = row.last_step
    kept = last if next_start is None or last is None else min(last, next_start)
    return rest.Generation(
        number=row.number,
        attempt=row.attempt,
        state=GenerationState(row.state),
        world_size=row.world_size,
        start_step=row.start_step,
        last_step=last,
        merged_through=kept,
        rolled_back_steps=0 if last is None or kept is None else last - kept,
        formed_at=to_datetime(row.formed_at),
        first_step_at=to_datetime(row.first_step_at),
        ended_at=to_datetime(row.ended_at),
        end_reason=rest.Reason.from_stored(row.end_reason),
    )


def serialize_machine(row: MachineRow, posted: Mapping[UUID, int], now: int) -> rest.Machine:
    lines = machine_bill(row, now)
    spent = max(posted.get(row.id, 0), total(lines))
    return rest.Machine(
        id=row.id,
        attempt=row.attempt,
        slot=row.slot,
        ordinal=row.ordinal,
        provider=row.provider,
        region=row.region,
        zone=row.zone,
        type=row.type,
        market=row.market,
        state=MachineState(row.state),
        provider_id=row.provider_id,
        image=row.image,
        driver=row.driver,
        price_per_hour=rest.Money.of(money.from_decimal(row.price)),
        on_demand_per_hour=rest.Money.of(money.from_decimal(row.on_demand_price)),
        left=rest.Reason.of(LeftToProvider(row.left_until)) if row.left_until and row.state in ALIVE else None,
        launched_at=to_datetime(row.launched_at),
        ended_at=to_datetime(row.ended_at),
        end_cause=row.end_cause,
        last_report_at=to_datetime(row.last_report_at),
        cost=rest.Money.of(posted.get(row.id, 0) if row.billed_at else spent),
        posted=row.billed_at is not None,
        lines=[
            rest.BillLine(
                line=line.line,
                amount=rest.Money.of(line.amount),
                basis="estimate" if line.estimate or row.billed_at is None else "settled",
                reason=rest.Reason.of(line.reason),
            )
            for line in lines
        ],
    )

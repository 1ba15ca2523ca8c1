# SPDX-License-Identifier: Apache-2.0
"""What a team's machines were paid for lately: from their bills, and from the generations that they were members of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select

from shoestring_core.decide import waste
from shoestring_core.decide.billing import bill
from shoestring_core.store.fleet.billing import evidence
from shoestring_core.store.tables import GenerationRow, JobRow, MachineRow, MemberRow
from shoestring_core.store.transactions import Read

MAX_WASTE_MACHINES = 5000


@dataclass(frozen=True)
class JobUse:
    """Micro-dollars that a job cost, by use."""

    job: UUID
    name: str
    parts: Mapping[waste.Use, int]


def load_use(db: Read, team: UUID, since: int) -> list[JobUse]:
    """What the newest machines of a team that were made since then cost, by job; those that wasted the most first."""
    query = select(MachineRow, JobRow.name).join(JobRow, JobRow.id == MachineRow.job)
    recent = query.where(JobRow.team_id == team, MachineRow.created_at >= since, MachineRow.launched_at.is_not(None))
    machines = db.sql.execute(recent.order_by(MachineRow.id.desc()).limit(MAX_WASTE_MACHINES)).all()
    stretches = _load_stretches(db, {machine.job for machine, _ in machines})
    by_job: dict[UUID, list[Mapping[waste.Use, int]]] = defaultdict(list)
    names: dict[UUID, str] = {}
    for machine, name in machines:
        names[machine.job] = name
        cost = sum(line.amount for line in bill(evidence(machine), db.now))
        until = db.now - machine.clock_shift if machine.ended_at is None else machine.ended_at
        ended, launched_at = machine.ended_at is not None, machine.launched_at or until
        time = waste.MachineTime(launched_at, until, ended, stretches.get(machine.id, ()))
        by_job[machine.job].append(waste.split_cost(cost, time))
    used = [JobUse(job, names[job], waste.add(parts)) for job, parts in by_job.items()]
    return sorted(used, key=lambda one: (-waste.wasted(one.parts), one.job))


def _load_stretches(db: Read, jobs: set[UUID]) -> dict[UUID, list[waste.Stretch]]:
    """By machine, the generations that it was a member of."""
    rows = list(db.sql.scalars(select(GenerationRow).where(GenerationRow.job.in_(jobs)).order_by(GenerationRow.number)))
    starts = {(row.job, row.number): row.start_step for row in rows}
    members = select(MemberRow.machine, MemberRow.job, MemberRow.generation).where(MemberRow.job.in_(jobs))
    by_generation: dict[tuple[UUID, int], list[UUID]] = defaultdict(list)
    for machine, job, number in db.sql.execute(members):
        by_generation[job, number].append(machine)
    found: dict[UUID, list[waste.Stretch]] = defaultdict(list)
    for row in rows:
        stretch = waste.Stretch(
            row.opened_at, row.first_step_at, row.ended_at, row.start_step, row.last_step,
            starts.get((row.job, row.number + 1)),
        )  # fmt: skip
        for machine in by_generation[row.job, row.number]:
            found[machine].append(stretch)
    return found

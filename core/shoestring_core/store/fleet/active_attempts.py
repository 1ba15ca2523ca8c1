# SPDX-License-Identifier: Apache-2.0
"""Active attempts: what is decided about machines is decided about one of these."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

from sqlalchemy import BindParameter, bindparam, select

from shoestring_core import wire
from shoestring_core.decide import failures, rendezvous, retries
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.spec import JobSpec
from shoestring_core.states import GenerationState, MachineState
from shoestring_core.store.fleet import rows
from shoestring_core.store.tables import AttemptRow, GenerationRow, JobRow, MachineRow, MemberRow
from shoestring_core.store.transactions import Read


@dataclass(frozen=True)
class ActiveAttempt:
    """An attempt that isn't closed, with its job, machines, generation and members."""

    job: JobRow
    attempt: AttemptRow
    machines: list[MachineRow]
    """All of the attempt, never launched ones too, by ordinal."""
    generation: GenerationRow | None
    members: list[MemberRow]
    last_formed: frozenset[UUID]
    """The machines of the last generation that formed."""
    restarts: int
    trained_us: int
    """How long the job's generations have run so far, over all attempts."""

    @cached_property
    def spec(self) -> JobSpec:
        """Parsed on first use, so that one that can't be read stops no other attempt. Raises InvalidSpec."""
        return JobSpec.from_stored(self.job.spec)

    @property
    def wanted(self) -> bool:
        return rows.is_wanted(self.job, self.attempt)

    @property
    def provider(self) -> str:
        """The provider of its machines: all since it was opened have the same."""
        return self.machines[-1].provider

    @property
    def gang(self) -> dict[int, MachineRow]:
        """The machine of each slot: the latest that may have been launched."""
        return {machine.slot: machine for machine in self.machines if machine.state != MachineState.NEVER_LAUNCHED}

    @property
    def live_machines(self) -> list[MachineRow]:
        return [machine for machine in self.machines if machine.state in rows.ALIVE]

    @property
    def at_work(self) -> bool:
        return any(map(rows.is_at_work, self.machines))

    @property
    def elastic(self) -> bool:
        return rows.is_elastic(self.job)

    def empty_slots(self, now: int, timeouts: Timeouts) -> list[int]:
        """Slots to launch a machine for again, after a backoff: all their launches were given up; in a training
        elastic gang, or their machines have terminated."""
        filled = {row.slot for row in self.machines if row.state in rows.ALIVE}
        if self.generation is None:
            filled = set(self.gang)
        elif not self.elastic:
            return []
        slots = []
        for slot in set(range(self.spec.resources.nodes)) - filled:
            tries = [row for row in self.machines if row.slot == slot and row.created_at >= self.attempt.opened_at]
            last = max((row.created_at for row in tries), default=0)
            if now >= last + retries.backoff(len(tries), timeouts):
                slots.append(slot)
        return slots

    def gang_status(self) -> failures.GangStatus:
        generation = self.generation
        return failures.GangStatus(
            size=self.spec.resources.nodes,
            min_nodes=self.spec.resources.min_nodes,
            machines=self.machine_statuses,
            opened_at=self.attempt.opened_at,
            generation=generation.number if generation else None,
            generation_state=GenerationState(generation.state) if generation else None,
            generation_opened_at=generation.opened_at if generation else 0,
            restarts=self.restarts,
            skips=tuple((first, last) for first, last in self.job.skipped_step_spans or ()),
            refusals=tuple(
                (RefusalKind(str(row.refusal)), row.refusal_text or "")
                for row in self.machines
                if row.refused_at is not None and row.created_at >= self.attempt.opened_at
            ),
        )

    @property
    def machine_statuses(self) -> tuple[rendezvous.MachineStatus, ...]:
        """The machine of each slot; once a generation is open, its members, the last ones, and newer ones."""
        memberships = {member.machine: member for member in self.members}
        machines = [row for _, row in sorted(self.gang.items())]
        if self.generation is not None:
            machines = [
                row
                for row in sorted(self.machines, key=lambda row: row.slot)
                if row.id in memberships
                or row.state in rows.ALIVE
                or (row.id in self.last_formed and row.state != "never_launched")
            ]
        return tuple(
            _machine_status(
                row,
                memberships.get(row.id),
                is_member=not memberships or row.id in memberships,
                was_member=row.id in self.last_formed,
            )
            for row in machines
        )


def load_active_attempts(db: Read) -> list[ActiveAttempt]:
    """All, by job."""
    return _load(db, [(job, attempt) for job, attempt in db.sql.execute(_UNCLOSED)])


def load_active_attempt(db: Read, attempt: AttemptRow) -> ActiveAttempt:
    """An attempt as it is now."""
    return _load(db, [(rows.load_job(db, attempt.job), attempt)])[0]


def _load(db: Read, attempts: list[tuple[JobRow, AttemptRow]]) -> list[ActiveAttempt]:
    if not attempts:
        return []
    of_these = {"jobs": list({job.id for job, _ in attempts})}
    machines = rows.group_by_job(db.sql.scalars(_MACHINES, of_these))
    generations = rows.group_by_job(db.sql.scalars(_GENERATIONS, of_these))
    members = rows.group_by_job(db.sql.scalars(_MEMBERS, of_these))
    return [
        _active_attempt(db, job, attempt, machines[job.id], generations[job.id], members[job.id])
        for job, attempt in attempts
    ]


def _active_attempt(
    db: Read,
    job: JobRow,
    attempt: AttemptRow,
    machines: list[MachineRow],
    generations: list[GenerationRow],
    members: list[MemberRow],
) -> ActiveAttempt:
    own = [row for row in generations if row.attempt == attempt.number]
    current = own[-1] if own and own[-1].number == job.generation else None
    formed = max((row.number for row in own if row.formed_at is not None), default=None)
    return ActiveAttempt(
        job=job,
        attempt=attempt,
        machines=[row for row in machines if row.attempt == attempt.number],
        generation=current,
        members=[row for row in members if current is not None and row.generation == current.number],
        last_formed=frozenset(row.machine for row in members if row.generation == formed),
        restarts=max(0, sum(row.start_checkpoint == job.checkpoint for row in own) - 1),
        trained_us=sum((row.ended_at or db.now) - row.formed_at for row in generations if row.formed_at is not None),
    )


def _machine_status(
    machine: MachineRow, member: MemberRow | None, *, is_member: bool, was_member: bool
) -> rendezvous.MachineStatus:
    exits = tuple(wire.from_stored(wire.RankExit, end) for end in (member.exits or [])) if member else ()
    failed = machine.boot_failure
    return rendezvous.MachineStatus(
        slot=machine.slot,
        state=MachineState(machine.state),
        end_cause=machine.end_cause,
        notice_at=machine.notice_at,
        is_left=machine.left_until is not None,
        last_report_at=machine.last_report_at,
        ready_at=member.ready_at if member else None,
        exited_at=member.exited_at if member else None,
        exits=exits,
        registered_at=machine.registered_at,
        ended_at=machine.ended_at,
        launched_at=machine.launched_at,
        hello_at=machine.hello_at,
        boot_failure=(failed["failure"], failed["phase"], failed["message"]) if failed else None,
        is_member=is_member,
        is_rank0=member is not None and member.node_rank == 0,
        was_member=was_member,
    )


_UNCLOSED = (
    select(JobRow, AttemptRow)
    .join(AttemptRow, AttemptRow.job == JobRow.id)
    .where(AttemptRow.state.in_(rows.UNCLOSED))
    .order_by(AttemptRow.job)
)
_JOBS: BindParameter[list[UUID]] = bindparam("jobs", expanding=True)
_MACHINES = select(MachineRow).where(MachineRow.job.in_(_JOBS)).order_by(MachineRow.attempt, MachineRow.ordinal)
_GENERATIONS = select(GenerationRow).where(GenerationRow.job.in_(_JOBS)).order_by(GenerationRow.number)
_MEMBERS = select(MemberRow).where(MemberRow.job.in_(_JOBS)).order_by(MemberRow.node_rank)
"""Built once: to build a statement of SQLAlchemy takes longer than to run it, and each tick runs all of these."""

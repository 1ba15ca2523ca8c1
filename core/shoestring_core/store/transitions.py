# SPDX-License-Identifier: Apache-2.0
"""Changes of state: UPDATEs guarded by the tables of transitions. Nothing else updates a `state` of these rows.

Callers add the other conditions of their decision with `where`, and further columns with `values`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Update, update

from shoestring_core import states
from shoestring_core.states import AttemptState, GenerationState, JobState, MachineState
from shoestring_core.store.tables import AttemptRow, GenerationRow, JobRow, MachineRow

S = TypeVar("S", JobState, AttemptState, MachineState, GenerationState)


def move_job(job: UUID, to: JobState) -> Update:
    return _move(JobRow, states.JOB_TRANSITIONS, to).where(JobRow.id == job)


def move_attempt(job: UUID, number: int, to: AttemptState) -> Update:
    return _move(AttemptRow, states.ATTEMPT_TRANSITIONS, to).where(AttemptRow.job == job, AttemptRow.number == number)


def move_machine(machine: UUID, to: MachineState) -> Update:
    return _move(MachineRow, states.MACHINE_TRANSITIONS, to).where(MachineRow.id == machine)


def move_generation(job: UUID, to: GenerationState) -> Update:
    """Of the job's current generation: the only one that isn't ended."""
    return _move(GenerationRow, states.GENERATION_TRANSITIONS, to).where(GenerationRow.job == job)


def _move(
    table: type[JobRow | AttemptRow | MachineRow | GenerationRow], transitions: Mapping[S, frozenset[S]], to: S
) -> Update:
    return update(table).where(table.state.in_(states.sources(transitions, to))).values(state=to)

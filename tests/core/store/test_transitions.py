# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from shoestring_core import states, store
from shoestring_core.states import AttemptState, EndReason, GenerationState, JobState, JobStatus, MachineState
from shoestring_core.store import transitions
from shoestring_core.store.tables import AttemptRow, GenerationRow, JobRow, MachineRow
from sqlalchemy import insert, select, update

from tests.core.world import World

NUMBER = 1
"""Of the attempt, and of the generation in it."""

CASES = [
    (JobRow, JobState, states.JOB_TRANSITIONS),
    (AttemptRow, AttemptState, states.ATTEMPT_TRANSITIONS),
    (MachineRow, MachineState, states.MACHINE_TRANSITIONS),
    (GenerationRow, GenerationState, states.GENERATION_TRANSITIONS),
]


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(("table", "enum", "allowed"), CASES)
def test_a_state_changes_only_as_its_table_allows(world: World, table: Any, enum: Any, allowed: Any) -> None:
    job = world.job()
    machine = world.machine(job)
    generation = insert(GenerationRow).values(
        job=job.id, number=NUMBER, attempt=NUMBER, state="forming", world_size=1, start_step=0, opened_at=0
    )
    world.store.write(lambda db: db.execute(generation))
    move = {
        JobRow: lambda to: transitions.move_job(job.id, to),
        AttemptRow: lambda to: transitions.move_attempt(job.id, NUMBER, to),
        MachineRow: lambda to: transitions.move_machine(machine, to),
        GenerationRow: lambda to: transitions.move_generation(job.id, to),
    }[table]

    for before, to in product(enum, enum):
        world.store.write(lambda db, before=before: db.execute(update(table).values(_columns(table, before))))
        changed = world.store.write(lambda db, to=to: db.execute(move(to).values(_columns(table, to))))
        assert changed == (to in allowed[before]), f"{before} to {to}"
        with world.store.read() as db:
            assert db.sql.scalars(select(table.state)).one() == (to if changed else before)


def test_each_change_is_of_one_row(world: World) -> None:
    job, other = world.job(), world.job()
    machine = world.machine(job)
    generation = {"attempt": 1, "state": "forming", "world_size": 1, "start_step": 0, "opened_at": 0}
    for one in (job, other):
        world.machine(one)
        world.store.write(lambda db, id_=one.id: db.insert_new(GenerationRow, job=id_, number=1, **generation))
    another = insert(AttemptRow).values(job=job.id, number=2, state="closed", plan={}, plan_version=0, opened_at=0)
    world.store.write(lambda db: db.execute(another))
    world.store.write(lambda db: db.execute(update(AttemptRow).values(state="closing")))
    for change in (
        transitions.move_job(job.id, JobState.LAUNCHING),
        transitions.move_attempt(job.id, 1, AttemptState.CLOSED),
        transitions.move_machine(machine, MachineState.LAUNCHING),
        transitions.move_generation(job.id, GenerationState.FORMED),
    ):
        assert world.store.write(lambda db, one=change: db.execute(one)) == 1


def test_only_these_statements_change_a_state() -> None:
    folder = Path(store.__path__[0])
    files = [file for file in folder.rglob("*.py") if "migrations" not in file.parts]
    assert {file.name for file in files if any(map(_changes_state, ast.walk(ast.parse(file.read_text()))))} == {
        "transitions.py",
        "holds.py",  # a hold is open or closed; the ledger guards it
        "budget_requests.py",  # a request is open until one guarded statement decides it
    }


def test_a_job_is_shown_by_its_state_until_it_has_ended_and_then_by_how() -> None:
    for state in set(JobState) - {JobState.ENDED}:
        assert JobStatus.of(state, None) == state
    ended = {JobStatus.of(JobState.ENDED, reason) for reason in EndReason}
    assert ended == {JobStatus.SUCCEEDED, JobStatus.STOPPED, JobStatus.FAILED} == set(JobStatus) - set(JobState)


def _columns(table: Any, state: str) -> dict[str, Any]:
    """The state, and what the table's checks want with it."""
    columns: dict[str, Any] = {"state": state}
    if table is JobRow:
        columns["end_reason"] = EndReason.NAN if state == JobState.ENDED else None
    if table is MachineRow:
        columns["ended_at"] = 1
    return columns


def _changes_state(node: ast.AST) -> bool:
    """Whether it is `….values(state=…)` of anything but an insert."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "values"):
        return False
    names = {keyword.arg for keyword in node.keywords}
    for literal in [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg is None)]:
        names |= {key.value for key in getattr(literal, "keys", ()) if isinstance(key, ast.Constant)}
    inserted = any(isinstance(part, ast.Name) and part.id == "insert" for part in ast.walk(node.func))
    return "state" in names and not inserted

# SPDX-License-Identifier: Apache-2.0
"""Rows are read and locked one job at a time: a bystander's are never among them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from shoestring_core.errors import AgentRefused
from shoestring_core.store.fleet import rows
from shoestring_core.store.tables import AttemptRow, JobRow, MachineRow
from shoestring_core.store.uuid7 import uuid7
from sqlalchemy import event, select

from tests.core.world import PLANNED, RUNNING, Fleet


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, True),
        ({"state": "launching"}, True),
        ({"attempt": 2}, False),
        ({"attempt_state": "closing"}, False),
        ({"state": "stopping"}, False),
        ({"state": "queued"}, False),
        ({"desired_state": "pause"}, False),
    ],
)
def test_machines_are_wanted_for_the_latest_attempt_of_a_job_that_is_to_train(
    changed: dict[str, Any], wanted: bool
) -> None:
    """A job may be resumed while it still stops: then it is to run, but not on these machines."""
    facts = {"attempt": 1, "state": "running", "desired_state": "run", "attempt_state": "open"} | changed
    attempt = AttemptRow(number=1, state=facts.pop("attempt_state"))
    assert rows.is_wanted(JobRow(**facts), attempt) is wanted


@pytest.mark.parametrize(
    ("resources", "elastic"), [({"nodes": 2}, False), ({"nodes": 2, "min": 2}, False), ({"nodes": 2, "min": 1}, True)]
)
def test_a_gang_is_elastic_if_it_may_be_smaller(resources: dict[str, int], elastic: bool) -> None:
    assert rows.is_elastic(JobRow(spec={"resources": resources})) is elastic


@pytest.mark.any_database
def test_a_machine_is_at_work_until_it_ends_or_is_left_to_its_provider(fleet: Fleet) -> None:
    _, (machine,) = fleet.running()
    states: list[tuple[str, int | None, bool]] = [
        ("running", None, True), ("running", 1, False), ("terminating", None, True), ("never_launched", None, False)
    ]  # fmt: skip
    for state, left_until, expected in states:
        fleet.alter(MachineRow, MachineRow.id == machine, state=state, left_until=left_until)
        read = fleet.machine_row(machine)
        found = fleet.read(lambda db: db.sql.scalar(select(MachineRow.id).where(rows.at_work())))
        assert (found == machine, rows.is_at_work(read)) == (expected, expected), state


@pytest.mark.any_database
def test_to_lock_a_job_locks_no_other(fleet: Fleet) -> None:
    job, _ = fleet.job().id, fleet.job()
    locked = []

    def note(connection, cursor, statement, parameters, context, many) -> None:
        if statement.startswith("UPDATE jobs "):
            locked.append(cursor.rowcount)

    event.listen(fleet.store.writer, "after_cursor_execute", note)
    try:
        assert fleet.write(rows.lock_job, job).id == job
    finally:
        event.remove(fleet.store.writer, "after_cursor_execute", note)
    assert locked == [1]


def test_machines_and_members_are_those_of_one_attempt_and_generation(fleet: Fleet) -> None:
    job, (first,) = fleet.running()
    fleet.restart(job)
    fleet.retry(job)
    (second,) = fleet.launch_again(job)
    other, (bystander,) = fleet.running()
    assert alive(fleet, job, 1) == []
    assert alive(fleet, job, 2) == [second]
    assert alive(fleet, other, 1) == [bystander]
    for number in (1, 2):
        assert [row.machine for row in fleet.read(rows.load_members, job, number)] == [first]
    assert [row.machine for row in fleet.read(rows.load_members, other, 1)] == [bystander]
    for owner, number in ((job, 1), (job, 2), (other, 1)):
        attempt = fleet.read(rows.load_attempt, owner, number)
        assert (attempt.job, attempt.number) == (owner, number)


def alive(fleet: Fleet, job: UUID, attempt: int) -> list[UUID]:
    return [row.id for row in fleet.read(rows.load_gang, job, attempt)]


def test_a_machine_that_does_not_exist_is_refused(fleet: Fleet) -> None:
    with pytest.raises(AgentRefused):
        fleet.read(rows.load_machine, uuid7())


def test_machines_that_are_alive_are_counted_by_what_they_are(fleet: Fleet) -> None:
    _, (ended, _) = fleet.running(nodes=2)
    planned = fleet.start()
    fleet.end(ended)
    assert fleet.read(rows.count_alive) == {("local", "local", "local.cpu", "spot"): 2}
    assert fleet.machine_states(planned) == [PLANNED]
    assert RUNNING in rows.ALIVE

# SPDX-License-Identifier: Apache-2.0
"""A tick has work as long as anything is open: a queued job, an attempt, a bill or the settlement of a job."""

from __future__ import annotations

import pytest
from shoestring_core.store import jobs
from shoestring_core.store.fleet import billing, gangs, open_work
from shoestring_core.store.tables import DeadlineRow

from tests.core.world import Fleet
from tests.statements import counted


def test_there_is_work_until_the_last_bill_and_the_settlement_of_a_job(fleet: Fleet) -> None:
    with counted(fleet.store) as statements:
        assert not has_work(fleet)
    assert statements.reads == 4, "of attempts, unbilled machines, unsettled jobs and the queue"
    job = fleet.job(resources={"nodes": 1}).id
    assert has_work(fleet), "it is queued"
    fleet.open_attempt(job)
    (machine,) = fleet.launch(job)
    assert has_work(fleet), "its attempt is open"
    fleet.write(jobs.stop, job, "ann", "pause")
    fleet.write(gangs.begin_stopping, job)
    fleet.finish_attempt(job)
    assert fleet.job_row(job).state == "paused"
    assert has_work(fleet), "its machine is not billed"
    fleet.write(billing.settle_machine, machine)
    assert not has_work(fleet)
    fleet.write(jobs.stop, job, "ann")
    assert fleet.job_row(job).state == "ended"
    assert has_work(fleet), "it is not settled"
    fleet.write(billing.settle_job, job)
    assert not has_work(fleet)


def has_work(fleet: Fleet) -> bool:
    return bool(fleet.read(open_work.load_open_work))


def test_only_machines_that_are_wanted_are_funded(fleet: Fleet) -> None:
    job, machines = fleet.running()
    assert list(fleet.read(open_work.load_open_work).fundings) == machines
    fleet.write(jobs.stop, job, "ann")
    work = fleet.read(open_work.load_open_work)
    assert (work.fundings, [active.wanted for active in work.attempts]) == ({}, [False])


@pytest.mark.any_database
def test_providers_are_asked_while_jobs_wait_machines_are_alive_or_a_decision_is_due(fleet: Fleet) -> None:
    _, (machine,) = fleet.running()
    assert demand(fleet) == (False, False, {"local"})
    fleet.end(machine)
    assert demand(fleet) == (False, False, set())
    waiting = fleet.job().id
    due = fleet.clock.now + 1_000_000
    fleet.store.write(lambda db: db.insert(DeadlineRow(job=waiting, plan={}, next_at=due)))
    assert demand(fleet) == (True, False, set())
    fleet.clock.pass_(1)
    assert demand(fleet) == (True, True, set())


def demand(fleet: Fleet) -> tuple[bool, bool, set[str]]:
    asked = fleet.read(open_work.load_demand)
    return asked.jobs_queued, asked.deadlines_due, set(asked.in_use)

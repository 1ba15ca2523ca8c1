# SPDX-License-Identifier: Apache-2.0
"""A tick has work as long as anything is open: a queued job, an attempt, a bill or the settlement of a job."""

from __future__ import annotations

from shoestring_core.store import jobs
from shoestring_core.store.fleet import billing, gangs, open_work

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

# SPDX-License-Identifier: Apache-2.0
"""Jobs that wait their turn and say why, and jobs that are taken up again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import witness
from tests.e2e.service import SMALL_JOB, Service, start

pytestmark = [pytest.mark.timeout(400)]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = start(tmp_path, options=("--budget", "5.00", "--slots", "2"))
    yield service
    service.stop()


def test_gangs_that_need_all_slots_run_one_after_another_and_each_says_why_it_waits(service: Service) -> None:
    client = service.client
    jobs = [client.submit(SMALL_JOB | {"name": name}) for name in ("first", "second", "third")]
    service.wait(jobs[0].id, lambda job: job.state in ("launching", "running"))
    second = service.wait(jobs[1].id, lambda job: job.wait_reason == "slots")
    third = service.wait(jobs[2].id, lambda job: job.wait_reason == "slots")
    assert "needs 2 machines, 0 of 2 are free" in second.sentence
    assert "needs 2 machines, 0 of 2 are free" in third.sentence
    assert f"job {second.id} came first" in third.sentence

    assert [service.settled(job.id).end_reason for job in jobs] == ["succeeded"] * 3
    in_turn = [[life for life in witness.lives(service.data) if life.job == str(job.id)] for job in jobs]
    assert [len(gang) for gang in in_turn] == [2, 2, 2]
    for before, after in itertools.pairwise(in_turn):
        assert max(life.ended for life in before if life.ended) <= min(life.launched for life in after)
    witness.require_none_alive(service.data)


def test_a_stopped_job_that_is_retried_goes_on_from_its_last_checkpoint(service: Service) -> None:
    client = service.client
    long_job = SMALL_JOB | {"params": SMALL_JOB["params"] | {"epochs": 20}}
    old = client.submit(long_job)
    service.trained(old.id, 20)
    client.stop(old.id)
    stopped = service.settled(old.id)
    assert stopped.end_reason == "user_stop"

    new = service.settled(client.retry(old.id).id)
    assert new.retried_from == old.id
    assert new.end_reason == "succeeded"
    start_step = client.attempts(new.id).attempts[0].generations[0].start_step
    assert start_step == stopped.progress.step > 20
    loss = next(curve for curve in client.metrics(new.id).curves if curve.name == "train/loss")
    assert loss.steps == list(range(start_step + 1, (stopped.progress.steps_total or 0) + 1))
    assert client.attempts(new.id).steps_lost == 0

    again = client.retry(new.id)  # what succeeded has nothing to go on from
    service.trained(again.id, 0)
    assert client.attempts(again.id).attempts[0].generations[0].start_step == 0
    client.stop(again.id)
    service.settled(again.id)
    witness.require_one_machine_a_slot(service.data)
    witness.require_none_alive(service.data)

# SPDX-License-Identifier: Apache-2.0
"""The team's way to run it: compose's services on real PostgreSQL and a real broker carry the main job to its end."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from shoestring import watch
from shoestring.client import Client

from tests.e2e import witness
from tests.e2e.composed import Composed
from tests.e2e.service import SMALL_JOB
from tests.servers import Postgres


@pytest.fixture
def service(postgres: Postgres, redis_url: str, tmp_path: Path) -> Iterator[Composed]:
    name = postgres.create()
    composed = Composed(tmp_path, postgres.url(name), redis_url)
    try:
        composed.start()
        yield composed
    finally:
        composed.stop()
        postgres.drop(name)


def test_composes_services_carry_a_job_over_a_preemption_to_its_settled_end(service: Composed) -> None:
    key = (service.folder / "admin.key").read_text().strip()
    with Client(service.url, key) as client:
        submitted = client.submit(SMALL_JOB | {"params": SMALL_JOB["params"] | {"epochs": 12}})
        preempted = False
        for job, _ in watch.follow(client, str(submitted.id)):
            if job.progress.step > 50 and not preempted:
                client.preempt(client.attempts(job.id).attempts[-1].machines[0].id, notice_s=10.0)
                preempted = True
        attempts = client.attempts(job.id)
    assert job.end_reason == "succeeded"
    first, *_, last = attempts.attempts  # on a busy machine a gang may take more than one attempt to get ready
    assert first.reason == "preempted"
    assert last.trained
    assert attempts.rolled_back_steps == 0
    assert attempts.steps == job.progress.steps_total
    assert witness.spent_usd(service.folder, str(job.id)) == Decimal(job.cost.spent.amount)
    assert sum(life.notice for life in witness.lives(service.folder)) == 1
    witness.require_one_machine_a_slot(service.folder)
    witness.require_none_alive(service.folder)

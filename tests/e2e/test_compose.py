# SPDX-License-Identifier: Apache-2.0
"""The team's way to run it: compose's services on real PostgreSQL and a real broker carry a gang's job to its end.

That a gang goes on after a preemption is shown by `test_demo.py`, whose service is made of the same processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from shoestring.client import Client
from shoestring_core import rest

from tests.e2e import witness
from tests.e2e.composed import Composed
from tests.e2e.service import SMALL_JOB, until
from tests.servers import PATIENCE_S, Postgres


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


def test_composes_services_carry_a_gang_to_its_settled_end(service: Composed) -> None:
    key = (service.folder / "admin.key").read_text().strip()
    with Client(service.url, key) as client:
        submitted = client.submit(SMALL_JOB | {"params": SMALL_JOB["params"] | {"epochs": 1}})
        job = until(lambda: settled(client, submitted), "the job to be settled", 2 * PATIENCE_S, every_s=1.0)
        attempts = client.attempts(job.id)
    assert job.end_reason == "succeeded", job.status_text
    assert attempts.attempts[-1].trained  # on a busy machine a gang may take more than one attempt to get ready
    assert attempts.rolled_back_steps == 0
    assert attempts.steps == job.progress.steps_total
    assert witness.spent_usd(service.folder, str(job.id)) == Decimal(job.cost.spent.amount)
    witness.require_one_machine_a_slot(service.folder)
    witness.require_none_alive(service.folder)


def settled(client: Client, job: rest.Job) -> rest.Job | None:
    found = client.job(job.id)
    return found if found.settled_at else None

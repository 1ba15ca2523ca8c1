# SPDX-License-Identifier: Apache-2.0
"""The team's way to run it: compose's services on real PostgreSQL and a real broker carry the main job to its end."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from shoestring import demo
from shoestring.client import Client

from tests.e2e import witness
from tests.e2e.composed import Composed
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


def test_composes_services_carry_a_job_over_a_reclaim_to_its_settled_end(service: Composed) -> None:
    key = (service.folder / "admin.key").read_text().strip()
    with Client(service.url, key) as client:
        summary = demo.train(client, 1, lambda _: None, None, interrupts=lambda: 0, supervise=lambda: None)
    assert summary["status"] == "succeeded"
    assert (summary["attempts"], summary["rolled_back_steps"], summary["world_size"]) == (2, 0, 2)
    assert summary["accuracy"] >= 0.97
    assert witness.spent_usd(service.folder, summary["job_id"]) == Decimal(summary["spent_usd"])
    assert sum(life.notice for life in witness.lives(service.folder)) == 1
    witness.require_one_machine_a_slot(service.folder)
    witness.require_none_alive(service.folder)

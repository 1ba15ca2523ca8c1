# SPDX-License-Identifier: Apache-2.0
"""How long spot machines lasted, read from rows."""

from __future__ import annotations

import pytest
from shoestring_core.decide.predictions import SpotHistory
from shoestring_core.decide.timeouts import S
from shoestring_core.store.quote_inputs import load_spot_histories
from shoestring_core.store.tables import AttemptRow, MachineRow
from shoestring_core.store.uuid7 import uuid7

from tests.core.world import World

pytestmark = pytest.mark.any_database


def test_spot_machines_are_counted_with_their_losses_and_replacements(world: World):
    job = world.job()
    with world.store.read() as db:
        now = db.now

    def rent(db, slot: int, ago_s: float, lasted_s: float, cause: str, market: str = "spot", type_="g5"):
        launched = now - round(ago_s * S)
        db.insert_new(
            MachineRow, id=uuid7(), job=job.id, attempt=1, ordinal=next(ordinals), slot=slot, provider="local",
            region="local", zone="", type=type_, market=market, price="1", on_demand_price="2", simulated=True,
            billing={}, launch_request={}, state="terminated", acked_seq=0, created_at=launched, launched_at=launched,
            ended_at=launched + round(lasted_s * S), end_cause=cause,
        )  # fmt: skip

    ordinals = iter(range(100))

    def work(db):
        db.insert_new(
            AttemptRow, job=job.id, number=1, state="open", plan={}, plan_version=0, opened_at=now, trained=True
        )
        rent(db, 0, 40 * 86_400, 5000, "preempted")  # too long ago
        rent(db, 0, 9000, 1000, "preempted")
        rent(db, 1, 9000, 2000, "requested")
        rent(db, 0, 7900, 500, "preempted")  # 100 s after the loss
        rent(db, 0, 7300, 500, "requested", market="on_demand")  # replaces it 100 s later, and is no spot machine
        rent(db, 0, 3000, 700, "requested", type_="g6")

    world.store.write(work)
    with world.store.read() as db:
        assert load_spot_histories(db) == {
            ("local", "g5"): SpotHistory(3500.0, 2, 2, 200.0),
            ("local", "g6"): SpotHistory(700.0, 0, 0, 0.0),
        }

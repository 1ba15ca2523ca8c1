# SPDX-License-Identifier: Apache-2.0
"""Whether our own API answers: only then is silence that of the machines."""

from __future__ import annotations

import pytest
from shoestring_core.decide.timeouts import S
from shoestring_core.store.fleet import service_heartbeats
from shoestring_core.store.tables import ServiceRow

from tests.core.world import Fleet


def service(fleet: Fleet) -> tuple[int, int]:
    with fleet.store.read() as db:
        row = db.sql.get_one(ServiceRow, "api")
        return row.up_since, row.last_heartbeat_at


def test_a_gap_between_heartbeats_restarts_the_uptime(fleet: Fleet) -> None:
    begun = fleet.clock.now
    fleet.write(service_heartbeats.record_heartbeat, "api", 10 * S)
    fleet.write(service_heartbeats.record_heartbeat, "worker", 10 * S)
    fleet.clock.pass_(10)
    fleet.write(service_heartbeats.record_heartbeat, "api", 10 * S)
    assert service(fleet) == (begun, begun + 10 * S)
    fleet.clock.now += 10 * S + 1
    fleet.write(service_heartbeats.record_heartbeat, "worker", 100 * S)
    assert service(fleet) == (begun, begun + 10 * S)
    fleet.write(service_heartbeats.record_heartbeat, "api", 10 * S)
    assert service(fleet) == (fleet.clock.now, fleet.clock.now)


@pytest.mark.parametrize(
    ("up_s", "silent_us", "enforced"),
    [(30, 0, True), (30, -1, False), (29, 0, False), (60, 15 * S, True), (60, 15 * S + 1, False)],
)
def test_leases_count_only_while_the_api_answers(fleet: Fleet, up_s: int, silent_us: int, enforced: bool) -> None:
    """`up_s` before now it came up; `silent_us` ago it was heard last (-1: its uptime is a microsecond shorter)."""
    assert not fleet.read(service_heartbeats.leases_enforced, fleet.clock.now, fleet.timeouts), "no API yet"
    now = fleet.clock.now
    fleet.write(service_heartbeats.record_heartbeat, "api", 10 * S)
    up_since = now - up_s * S + (1 if silent_us < 0 else 0)
    fleet.alter(ServiceRow, ServiceRow.name == "api", up_since=up_since, last_heartbeat_at=now - max(0, silent_us))
    assert fleet.read(service_heartbeats.leases_enforced, fleet.clock.now, fleet.timeouts) == enforced

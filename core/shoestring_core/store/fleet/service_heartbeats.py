# SPDX-License-Identifier: Apache-2.0
"""Heartbeats of our own services: an agent's silence means nothing while the API doesn't answer."""

from __future__ import annotations

from sqlalchemy import update

from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.store.tables import ServiceRow
from shoestring_core.store.transactions import Read, Write


def record_heartbeat(db: Write, name: str, max_gap: int) -> None:
    """Record that a service answers. A gap of more than `max_gap` µs between heartbeats restarts its uptime."""
    if db.insert_new(ServiceRow, name=name, up_since=db.now, last_heartbeat_at=db.now):
        return
    row = db.sql.get_one(ServiceRow, name)
    up_since = db.now if db.now - row.last_heartbeat_at > max_gap else row.up_since
    heartbeat = update(ServiceRow).where(ServiceRow.name == name)
    db.execute(heartbeat.values(up_since=up_since, last_heartbeat_at=db.now))


def leases_enforced(db: Read, now: int, timeouts: Timeouts) -> bool:
    """Whether the API has answered without a break for one lease length: only then is silence the machines' own."""
    api = db.sql.get(ServiceRow, "api")
    return (
        api is not None
        and now - api.last_heartbeat_at <= timeouts.machine_lease // 2
        and now - api.up_since >= timeouts.machine_lease
    )

# SPDX-License-Identifier: Apache-2.0
"""Which services answer, and since when: an agent's silence says nothing while the API is silent itself."""

from __future__ import annotations

from sqlalchemy import update

from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.store.db import Read, Write
from shoestring_core.store.fleet import records
from shoestring_core.store.tables import ServiceRow


def seen(db: Write, name: str, gap: int) -> None:
    """A service says that it answers. A silence of more than `gap` µs breaks its uptime."""
    if db.insert_new(ServiceRow, name=name, up_since=db.now, seen_at=db.now):
        return
    known = db.sql.get_one(ServiceRow, name)
    since = db.now if db.now - known.seen_at > gap else known.up_since
    records.touched(db, update(ServiceRow).where(ServiceRow.name == name).values(up_since=since, seen_at=db.now))


def leases_enforced(db: Read, timeouts: Timeouts) -> bool:
    """Whether the API has answered without a break for one lease length: only then is silence the machines' own."""
    api = db.sql.get(ServiceRow, "api")
    return (
        api is not None
        and db.now - api.seen_at <= timeouts.machine_lease // 2
        and db.now - api.up_since >= timeouts.machine_lease
    )

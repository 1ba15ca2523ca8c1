# SPDX-License-Identifier: Apache-2.0
"""Leaks: what ran at a provider without a row, and what it cost until it was gone. The target is $0."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select, update

from shoestring_core import money
from shoestring_core.store.tables import LeakRow
from shoestring_core.store.transactions import Read, Write


def record_leak(db: Write, provider: str, region: str, id_: str, kind: str, hourly: str, since: int) -> bool:
    """Returns whether it wasn't known before. `hourly`: dollars per hour; `since`: when it began to cost (µs UTC)."""
    return db.insert_new(
        LeakRow, provider=provider, region=region, provider_id=id_, kind=kind, hourly=hourly,
        since=min(since, db.now), found_at=db.now, ended_at=None,
    )  # fmt: skip


def end_leaks(db: Write, provider: str, region: str, kinds: Collection[str], present: Collection[str]) -> None:
    """Those of a region that its list doesn't have any more are gone."""
    gone = update(LeakRow).where(
        LeakRow.provider == provider,
        LeakRow.region == region,
        LeakRow.kind.in_(kinds),
        LeakRow.provider_id.not_in(present),
        LeakRow.ended_at.is_(None),
    )
    db.execute(gone.values(ended_at=db.now))


def load_open(db: Read, provider: str) -> set[str]:
    """The regions in which there are some that are not gone yet."""
    there = select(LeakRow.region).where(LeakRow.provider == provider, LeakRow.ended_at.is_(None))
    return set(db.sql.scalars(there.distinct()))


def leaked(db: Read) -> int:
    """What all leaks together have cost, in micro-dollars."""
    rows = db.sql.execute(select(LeakRow.hourly, LeakRow.since, LeakRow.ended_at))
    return money.total_cost((hourly, (db.now if ended is None else ended) - since) for hourly, since, ended in rows)

# SPDX-License-Identifier: Apache-2.0
"""The feed: the events of a team, numbered without gaps in the order of commits.

`shoestring_core.events` has a model for the data of each kind.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select

from shoestring_core.events import BatchStored
from shoestring_core.store.cursors import InvalidCursor, decode_cursor, encode_cursor
from shoestring_core.store.tables import EventRow, JobRow, TeamRow
from shoestring_core.store.transactions import Read, Write

MAX_BEHIND = 10_000
"""A reader further back reads the resources again instead of their history."""


def load_events(db: Read, team: UUID, after: int, limit: int) -> list[EventRow]:
    """The events past `after`, oldest first, at most `limit`."""
    query = select(EventRow).where(EventRow.team == team, EventRow.seq > after).order_by(EventRow.seq).limit(limit)
    return list(db.sql.scalars(query))


def latest_seq(db: Read, team: UUID) -> int:
    """The number of the team's newest event; 0 if nothing happened yet."""
    return db.sql.scalar(select(TeamRow.feed_seq).where(TeamRow.id == team)) or 0


def is_too_old(db: Read, team: UUID, after: int) -> bool:
    """Whether a reader at `after` must start again: too far back, pruned, or from before a restored backup."""
    behind = latest_seq(db, team) - after
    if not 0 <= behind <= MAX_BEHIND:
        return True
    return db.sql.scalar(select(func.count()).where(EventRow.team == team, EventRow.seq > after)) != behind


def record_batch(db: Write, job: JobRow, source: UUID, seq: int, generation: int) -> None:
    """Record that batch `seq` of a source of points or logs arrived, so that live streams load it."""
    stored = BatchStored(source=source, seq=seq)
    db.event(stored, team=job.team_id, actor="source", job=job.id, generation=generation)


def to_cursor(team: UUID, seq: int) -> str:
    """A position in the feed as an opaque cursor, valid for this team alone."""
    return encode_cursor(team.bytes[-6:] + seq.to_bytes(8, "big"))


def from_cursor(team: UUID, text: str) -> int:
    """The number in a cursor. Raises InvalidCursor for what `to_cursor` never returned for this team."""
    raw = decode_cursor(text)
    if len(raw) != 14 or raw[:6] != team.bytes[-6:]:
        raise InvalidCursor
    return min(int.from_bytes(raw[6:], "big"), 2**63 - 1)

# SPDX-License-Identifier: Apache-2.0
"""Entries of a team's event feed: events, points of curves, log lines."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from uuid import UUID

from pydantic import TypeAdapter
from shoestring_core import rest
from shoestring_core.events import from_stored as load_data
from shoestring_core.store import events, metrics
from shoestring_core.store.logs import StoredLogLine
from shoestring_core.store.tables import EventRow, MachineRow

from shoestring_api.serializers.times import to_datetime

log = logging.getLogger(__name__)

_EVENTS: TypeAdapter[rest.Event] = TypeAdapter(rest.Event)


def serialize_events(rows: Iterable[EventRow]) -> list[rest.Event]:
    """Of events; one whose row is damaged is left out, and logged."""
    found = []
    for row in rows:
        try:
            found.append(_serialize_event(row))
        except (ValueError, TypeError, KeyError) as damaged:
            log.error("event %s of team %s can't be read: %r", row.seq, row.team, damaged)
    return found


def _serialize_event(row: EventRow) -> rest.Event:
    return _EVENTS.validate_python(
        {
            "cursor": events.to_cursor(row.team, row.seq),
            "at": to_datetime(row.at),
            "job": row.job,
            "attempt": row.attempt,
            "generation": row.generation,
            "kind": row.kind,
            "actor": row.actor,
            "reason": rest.Reason.from_stored(row.reason),
            "data": load_data(row.kind, row.data),
        }
    )


def serialize_curves(curves: Iterable[metrics.StoredCurve]) -> list[rest.Curve]:
    return [
        rest.Curve(
            name=curve.name,
            generation=curve.generation,
            machine=curve.machine,
            rolled_back=curve.lost,
            steps=curve.steps,
            times=curve.times,
            values=curve.values,
        )
        for curve in curves
    ]


def serialize_log_lines(lines: Iterable[StoredLogLine], machines: Mapping[UUID, MachineRow]) -> list[rest.LogLine]:
    return [
        rest.LogLine(
            machine=line.machine, slot=machines[line.machine].slot, rank=line.rank, offset=line.offset, text=line.text
        )
        for line in lines
    ]

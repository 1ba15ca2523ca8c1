# SPDX-License-Identifier: Apache-2.0
"""Metrics: points appended in chunks of three columns, and read as curves.

A source of points is whatever numbers its own batches: a machine, a run of another tool, a file. Its id is opaque here.

A generation owns the steps after its start up to where a later generation began. Owned steps make up the merged curve;
the other steps of a generation were rolled back.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import func, select, tuple_

from shoestring_core import wire
from shoestring_core.errors import InvalidRequest
from shoestring_core.store import events
from shoestring_core.store.tables import GenerationRow, JobRow, MetricChunkRow, SeriesRow, storable
from shoestring_core.store.transactions import Read, Write
from shoestring_core.store.uuid7 import uuid7

SYSTEM_PREFIX = "system/"
"""Prefix of series about a machine, not the training: their steps are seconds since its start, in no generation."""

ENERGY_SUFFIX = "energy_joules"
"""Suffix of series that count a device's energy."""


MAX_SERIES = 1_000
"""Series of a job. Every list of jobs shows the latest value of each."""

# --- appending --------------------------------------------------------------------------------------------


@dataclass
class MetricColumns:
    """Points of one series: int64 steps, float64 Unix seconds, float64 values."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    @property
    def latest_value(self) -> float:
        """The value at the highest step; the last one if that step was reported several times."""
        return max(zip(self.steps, range(len(self.steps)), self.values, strict=True))[2]


def columns_by_name(points: Sequence[wire.MetricSeries]) -> dict[str, MetricColumns]:
    """The points of each series, without empty ones. Raises InvalidRequest for columns of different lengths."""
    columns: dict[str, MetricColumns] = defaultdict(MetricColumns)
    for series in points:
        name = storable(series.name)
        if not len(series.steps) == len(series.times) == len(series.values):
            raise InvalidRequest(f"Series {name!r} has columns of different lengths.")
        if not series.steps:
            continue
        column = columns[name]
        column.steps.extend(series.steps)
        column.times.extend(series.times)
        column.values.extend(series.values)
    return dict(sorted(columns.items()))


def append(
    db: Write, job: JobRow, columns: Mapping[str, MetricColumns], *, generation: int, source: UUID, seq: int
) -> bool:  # fmt: skip
    """Store the points of batch `seq` of a source: one chunk for each series, which is created if it is new.

    Points of a new series beyond MAX_SERIES are dropped. Batches may come repeatedly and in any order: a chunk that is
    stored stays as it is, and of two values for a step of a generation that of the source's later batch counts. Returns
    whether anything was new; then live streams show it.

    The caller has checked that the source may add to the generation; the job's progress is not changed here.
    """
    if not columns:
        return False
    ids = _series_ids(db, job.id, list(columns))
    rows = [
        {
            "series": ids[name], "source": source, "seq": seq, "generation": generation,
            "first_step": min(column.steps), "last_step": max(column.steps), "count": len(column.steps),
            "steps": _pack(column.steps), "times": _pack(column.times), "values": _pack(column.values),
        }
        for name, column in columns.items()
        if name in ids
    ]  # fmt: skip
    if not rows or not db.insert_missing(MetricChunkRow, rows):
        return False
    events.record_batch(db, job, source, seq, generation)
    return True


def _series_ids(db: Write, job: UUID, names: list[str]) -> dict[str, UUID]:
    """The id of each series; new ones are inserted, up to MAX_SERIES."""
    query = select(SeriesRow.name, SeriesRow.id).where(SeriesRow.job == job, SeriesRow.name.in_(names))
    ids = dict(db.sql.execute(query).all())
    missing = [{"id": uuid7(), "job": job, "name": name} for name in names if name not in ids]
    if missing:
        stored = db.sql.scalar(select(func.count()).where(SeriesRow.job == job)) or 0
        missing = missing[: max(0, MAX_SERIES - stored)]
    if missing:
        db.insert_missing(SeriesRow, missing)
        ids = dict(db.sql.execute(query).all())
    return ids


# --- curves -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnedSteps:
    """The steps of the merged curve that come from one generation: after `start`, through `last` (None: open end)."""

    start: int
    last: int | None

    def __contains__(self, step: int) -> bool:
        return step > self.start and (self.last is None or step <= self.last)


def owned_steps(generations: Iterable[GenerationRow]) -> dict[int, OwnedSteps]:
    """The steps that each generation owns, by its number. A later one that began earlier owns all after its start."""
    owned: dict[int, OwnedSteps] = {}
    last: int | None = None
    for row in sorted(generations, key=lambda row: row.number, reverse=True):
        owned[row.number] = OwnedSteps(row.start_step, last)
        last = row.start_step if last is None else min(last, row.start_step)
    return owned


@dataclass(frozen=True)
class StoredCurve:
    """A part of a series. `generation` None: of the merged curve; else of that generation, `lost` or not.

    machine  set for series of machines alone
    """

    name: str
    generation: int | None
    machine: UUID | None
    lost: bool
    steps: list[int]
    times: list[float]
    values: list[float]


def load_curves(
    db: Read,
    job: UUID,
    names: Sequence[str] | None = None,
    *,
    merged: bool = True,
    first: int = 0,
    last: int | None = None,
) -> list[StoredCurve]:
    """The job's series by name, all if `names` is None: merged, or by generation with rolled-back steps."""
    owned = owned_steps(db.sql.scalars(select(GenerationRow).where(GenerationRow.job == job)))
    query = select(MetricChunkRow, SeriesRow.name).join(SeriesRow, SeriesRow.id == MetricChunkRow.series)
    query = query.where(SeriesRow.job == job, MetricChunkRow.last_step >= first)
    if names is not None:
        query = query.where(SeriesRow.name.in_(names))
    if last is not None:
        query = query.where(MetricChunkRow.first_step <= last)
    in_order = query.order_by(SeriesRow.name, MetricChunkRow.generation, MetricChunkRow.source, MetricChunkRow.seq)
    parts: dict[_CurveKey, dict[int, tuple[float, float]]] = defaultdict(dict)
    for chunk, name in db.sql.execute(in_order):
        machine = chunk.source if name.startswith(SYSTEM_PREFIX) else None
        for step, time, value in unpack(chunk):
            kept = machine is not None or (chunk.generation in owned and step in owned[chunk.generation])
            if step < first or (last is not None and step > last) or (merged and not kept):
                continue
            generation = None if merged or machine else chunk.generation
            parts[_CurveKey(name, generation, machine, not kept)][step] = (time, value)
    return [_curve(*key, part) for key, part in sorted(parts.items(), key=lambda item: item[0].sort_key)]


def load_latest(db: Read, job: UUID, last: int) -> dict[str, float]:
    """The value of each series of the training at step `last` of the merged curve, or at the last one before it.

    Of each series and generation only the chunks that contain it are read.
    """
    owned = owned_steps(db.sql.scalars(select(GenerationRow).where(GenerationRow.job == job)))
    latest: dict[str, float] = {}
    for number, steps in sorted(owned.items()):
        through = last if steps.last is None else min(last, steps.last)
        of_generation = (MetricChunkRow.generation == number, MetricChunkRow.first_step <= through)
        newest = select(MetricChunkRow.series, func.max(MetricChunkRow.first_step)).where(*of_generation)
        newest = newest.join(SeriesRow, SeriesRow.id == MetricChunkRow.series).group_by(MetricChunkRow.series)
        newest = newest.where(SeriesRow.job == job, SeriesRow.name.not_like(f"{SYSTEM_PREFIX}%"))
        chunks = select(MetricChunkRow, SeriesRow.name).join(SeriesRow, SeriesRow.id == MetricChunkRow.series)
        chunks = chunks.where(tuple_(MetricChunkRow.series, MetricChunkRow.first_step).in_(newest), *of_generation)
        ends: dict[str, tuple[int, float]] = {}
        for chunk, name in db.sql.execute(chunks.order_by(MetricChunkRow.source, MetricChunkRow.seq)):
            points = [(step, value) for step, _, value in unpack(chunk) if step in steps and step <= last]
            ends[name] = max([*points, ends.get(name, (0, 0.0))], key=lambda point: point[0])
        latest |= {name: value for name, (step, value) in ends.items() if step}
    return latest


def epoch_milli(latest: Mapping[str, float]) -> int | None:
    """Thousandths of the epoch among a job's latest values; None if it is no such number."""
    epoch = latest.get("epoch", math.nan)
    return round(epoch * 1000) if math.isfinite(epoch) and 0 <= epoch < 2**40 else None


def load_energy_curves(db: Read, job: UUID) -> list[StoredCurve]:
    """The energy meters of the job's machines: joules since each machine's start."""
    query = select(SeriesRow.name).where(
        SeriesRow.job == job, SeriesRow.name.like(f"{SYSTEM_PREFIX}%{ENERGY_SUFFIX}")
    )  # fmt: skip
    names = list(db.sql.scalars(query))
    return load_curves(db, job, names) if names else []


def load_batch_curves(db: Read, source: UUID, seq: int) -> list[StoredCurve]:
    """The points of batch `seq` of a source, as appended."""
    query = select(MetricChunkRow, SeriesRow.name).join(SeriesRow, SeriesRow.id == MetricChunkRow.series)
    query = query.where(MetricChunkRow.source == source, MetricChunkRow.seq == seq).order_by(SeriesRow.name)
    return [
        _curve(name, chunk.generation, source, False, {step: (time, value) for step, time, value in unpack(chunk)})
        for chunk, name in db.sql.execute(query)
    ]


class _CurveKey(NamedTuple):
    name: str
    generation: int | None
    machine: UUID | None
    lost: bool

    @property
    def sort_key(self) -> tuple[str, int, int, bool]:
        return self.name, self.generation or 0, self.machine.int if self.machine else 0, self.lost


def _curve(
    name: str, generation: int | None, machine: UUID | None, lost: bool, points: Mapping[int, tuple[float, float]]
) -> StoredCurve:
    steps = sorted(points)
    times, values = [points[step][0] for step in steps], [points[step][1] for step in steps]
    return StoredCurve(name, generation, machine, lost, steps, times, values)


# --- chunks -----------------------------------------------------------------------------------------------


def unpack(chunk: MetricChunkRow) -> Iterable[tuple[int, float, float]]:
    """The points of a chunk: (step, Unix seconds, value)."""
    columns = []
    for typecode, data in (("q", chunk.steps), ("d", chunk.times), ("d", chunk.values)):
        column: array[Any] = array(typecode)
        column.frombytes(data)
        if sys.byteorder == "big":
            column.byteswap()
        columns.append(column)
    return zip(*columns, strict=True)


def _pack(column: array[Any]) -> bytes:
    """Little-endian."""
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()

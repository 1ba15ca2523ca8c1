# SPDX-License-Identifier: Apache-2.0
"""What machines report: points, logs and events, taken in by numbered batches and read as curves and lines.

Points are kept as chunks of three columns; a generation owns the steps after its start up to where a later one began
again, and what else it did is lost work. Logs are kept as the bytes that came.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import case, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from shoestring_core import wire
from shoestring_core.errors import BatchGap, InvalidRequest, NotFound
from shoestring_core.store.db import Read, Write
from shoestring_core.store.ids import new_id
from shoestring_core.store.tables import (
    AttemptRow,
    GenerationRow,
    JobRow,
    LogChunkRow,
    MachineRow,
    MemberRow,
    MetricChunkRow,
    SeriesRow,
)

SYSTEM = "system/"
"""Series of a machine, not of the training: their steps are seconds since the machine's start, in no generation."""

ENERGY = "energy_joules"
"""How the names of series end that count a device's energy."""

HOUR_US = 3_600_000_000
MAX_EVENT_BYTES = 20_000
MAX_LINE_BYTES = 64 * 1024
"""A longer line is shown in pieces."""


# --- taking in --------------------------------------------------------------------------------------------


def accept(db: Write, machine_id: UUID, batch: wire.TelemetryBatch, *, log_quota: int) -> int:
    """Store a machine's next batch and return the number of the last one stored. A repeated batch changes nothing.

    log_quota   log bytes taken of one job in an hour; what comes beyond is dropped and the job's log marked as cut
    raises      BatchGap (`expected` says which is next); InvalidRequest for a payload that will never be taken
    """
    machine = db.sql.get(MachineRow, machine_id)
    if machine is None:
        raise NotFound(f"There is no machine {machine_id}.")
    if batch.seq <= machine.acked_seq:
        return machine.acked_seq
    if batch.seq != machine.acked_seq + 1:
        raise _gap(machine.acked_seq)
    job = db.sql.get_one(JobRow, machine.job)
    points, logs = _columns(batch.points), _log_bytes(batch.logs)
    trained = {name: column for name, column in points.items() if not name.startswith(SYSTEM)}
    generation = _generation(db, job, machine, batch.generation) if trained else None

    first_at = _first_at(db, generation, trained) if generation is not None else db.now
    taken = _write_job(db, job, batch, trained, first_at, sum(len(data) for _, _, data in logs), log_quota)
    if generation is not None:
        _write_first_step(db, generation, trained, first_at)
    moved = db.sql.execute(
        update(MachineRow)
        .where(MachineRow.id == machine.id, MachineRow.acked_seq == batch.seq - 1)
        .values(acked_seq=batch.seq)
    )
    if moved.rowcount != 1:  # type: ignore[attr-defined] # the same batch came twice at once, and the other was first
        raise _gap(batch.seq - 1)
    _write_chunks(db, job.id, machine.id, batch, points)
    if taken:
        _write_logs(db, machine.id, batch.seq, logs)
    for event in batch.events:
        _tell(db, job, machine, batch.generation, event)
    if points or (logs and taken):
        db.event(
            team=job.team_id, kind="batch", actor="agent", job=job.id, attempt=machine.attempt,
            generation=batch.generation, ref=f"{machine.id}:{batch.seq}",
        )  # fmt: skip
    return batch.seq


def _gap(acked: int) -> BatchGap:
    return BatchGap(f"Batch {acked + 1} is next.", hint="Send it first.", expected=acked + 1)


@dataclass
class Column:
    """Points of one series: int64 steps, float64 unix seconds, float64 values."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    @property
    def newest(self) -> float:
        """The value of the highest step, the last one told of it."""
        return max(zip(self.steps, range(len(self.steps)), self.values, strict=True))[2]


def _columns(points: Sequence[wire.MetricSeries]) -> dict[str, Column]:
    columns: dict[str, Column] = defaultdict(Column)
    for series in points:
        if not len(series.steps) == len(series.times) == len(series.values):
            raise InvalidRequest(f"Series {clean(series.name)!r} has columns of different lengths.")
        if not series.steps:
            continue
        column = columns[clean(series.name)]
        column.steps.extend(series.steps)
        column.times.extend(series.times)
        column.values.extend(series.values)
    return dict(sorted(columns.items()))


def _log_bytes(logs: Sequence[wire.LogChunk]) -> list[tuple[int, int, bytes]]:
    """(rank, offset, bytes) of each chunk that has any."""
    chunks = []
    for chunk in logs:
        try:
            data = base64.b64decode(chunk.data_b64, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest(f"The log of rank {chunk.rank} is not valid base64.") from None
        if data:
            chunks.append((chunk.rank, chunk.offset, data))
    return chunks


def _generation(db: Read, job: JobRow, machine: MachineRow, no: int) -> GenerationRow:
    """The generation that points claim to be of. Only its members may add to its curve."""
    generation = db.sql.get(GenerationRow, (job.id, no))
    member = select(MemberRow.node_rank).where(
        MemberRow.job == job.id, MemberRow.generation == no, MemberRow.machine == machine.id
    )
    if generation is None or db.sql.scalar(member) is None:
        raise InvalidRequest(f"This machine is not a member of generation {no}.")
    return generation


def _first_at(db: Read, generation: GenerationRow, points: Mapping[str, Column]) -> int:
    """When the earliest of these points was measured, by the machine's clock within what ours allows; µs UTC."""
    earliest = min(min(column.times) for column in points.values())
    measured = int(earliest * 1e6) if 0 <= earliest < 2**40 else db.now
    return min(db.now, max(generation.formed_at or db.now, measured))


def _write_job(
    db: Write,
    job: JobRow,
    batch: wire.TelemetryBatch,
    points: Mapping[str, Column],
    first_at: int,
    log_size: int,
    log_quota: int,
) -> bool:
    """What the job row keeps of a batch; returns whether its logs are within the quota."""
    changes: dict[str, Any] = {}
    steps = [step for column in points.values() for step in column.steps]
    if steps:
        changes["last_step"] = _larger(JobRow.last_step, max(steps))
        if job.first_step_at is None:
            changes["first_step_at"] = func.coalesce(JobRow.first_step_at, first_at)
        if batch.generation >= job.generation:
            changes["latest"] = job.latest | {name: _json_number(column.newest) for name, column in points.items()}
            epoch = points.get("epoch")
            if epoch and math.isfinite(epoch.newest) and 0 <= epoch.newest < 2**40:
                changes["last_epoch_milli"] = round(epoch.newest * 1000)
    for event in batch.events:
        total = event.data.get("steps_total")
        if event.kind == "started" and isinstance(total, int) and 0 < total < 2**62:
            changes["steps_total"] = total
        if event.kind == "log_quota":
            changes["log_cut"] = True
    taken = True
    if log_size:
        hour = db.now // HOUR_US
        used = job.log_bytes if job.log_hour == hour else 0
        taken = used + log_size <= log_quota
        sum_ = case((JobRow.log_hour == hour, JobRow.log_bytes + log_size), else_=log_size)
        changes |= {"log_hour": hour, "log_bytes": sum_} if taken else {"log_cut": True}
    if changes:
        db.sql.execute(update(JobRow).where(JobRow.id == job.id).values(**changes))
    return taken


def _larger(column: Any, value: int) -> Any:
    """SQL's two-argument maximum: SQLite and PostgreSQL name it differently."""
    return case((func.coalesce(column, -1) < value, value), else_=column)


def _write_first_step(db: Write, generation: GenerationRow, points: Mapping[str, Column], first_at: int) -> None:
    """The generation's last step; and, once, that its attempt trained."""
    mine = (GenerationRow.job == generation.job, GenerationRow.no == generation.no)
    changes: dict[str, Any] = {
        "last_step": _larger(GenerationRow.last_step, max(max(column.steps) for column in points.values()))
    }
    if generation.first_step_at is None:
        trained = (AttemptRow.job == generation.job, AttemptRow.no == generation.attempt)
        db.sql.execute(update(AttemptRow).where(*trained).values(trained=True))
        changes["first_step_at"] = func.coalesce(GenerationRow.first_step_at, first_at)
    db.sql.execute(update(GenerationRow).where(*mine).values(**changes))


def _write_chunks(
    db: Write, job: UUID, machine: UUID, batch: wire.TelemetryBatch, points: Mapping[str, Column]
) -> None:
    if not points:
        return
    series = _series(db, job, list(points))
    rows = []
    for name, column in points.items():
        known = [value for value in column.values if not math.isnan(value)]
        rows.append(
            {
                "series": series[name], "machine": machine, "seq": batch.seq, "generation": batch.generation,
                "first_step": min(column.steps), "last_step": max(column.steps), "n": len(column.steps),
                "vmin": min(known, default=None), "vmax": max(known, default=None),
                "steps": _packed(column.steps), "times": _packed(column.times), "vals": _packed(column.values),
            }
        )  # fmt: skip
    db.sql.execute(insert(MetricChunkRow), rows)


def _series(db: Write, job: UUID, names: list[str]) -> dict[str, UUID]:
    """The id of each series, made where new."""
    known_rows = select(SeriesRow.name, SeriesRow.id).where(SeriesRow.job == job, SeriesRow.name.in_(names))
    known = dict(db.sql.execute(known_rows).all())
    missing = [{"id": new_id(), "job": job, "name": name} for name in names if name not in known]
    if missing:
        db.sql.execute(_insert_new(db, SeriesRow), missing)
        known = dict(db.sql.execute(known_rows).all())
    return known


def _write_logs(db: Write, machine: UUID, seq: int, logs: Sequence[tuple[int, int, bytes]]) -> None:
    rows = [
        {"machine": machine, "rank": rank, "byte_offset": offset, "seq": seq, "at": db.now, "bytes": data}
        for rank, offset, data in logs
    ]
    if rows:
        db.sql.execute(_insert_new(db, LogChunkRow), rows)


def _insert_new(db: Write, table: type[SeriesRow] | type[LogChunkRow]) -> Any:
    """INSERT that leaves rows alone which are there."""
    dialect = postgresql if db.sql.get_bind().dialect.name == "postgresql" else sqlite
    return dialect.insert(table).on_conflict_do_nothing()


def _tell(db: Write, job: JobRow, machine: MachineRow, generation: int, event: wire.AgentEvent) -> None:
    data = {"at": _json_number(event.at), "step": event.step, **{clean(k): plain(v) for k, v in event.data.items()}}
    if len(json.dumps(data)) > MAX_EVENT_BYTES:
        data = {"at": data["at"], "step": event.step, "cut": json.dumps(data)[:2000]}
    db.event(
        team=job.team_id, kind="agent", actor="agent", reason=clean(event.kind), job=job.id, attempt=machine.attempt,
        generation=generation or None, data=data | {"event": clean(event.kind), "machine": str(machine.id)},
    )  # fmt: skip


def clean(text: str) -> str:
    """Text that both databases can hold: no NUL, no half surrogate pairs."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def plain(value: Any) -> Any:
    """The same for a JSON tree, in which NaN and infinities become text."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return _json_number(value)
    if isinstance(value, Mapping):
        return {clean(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def _json_number(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _packed(column: array[int] | array[float]) -> bytes:
    return column.tobytes() if sys.byteorder == "little" else _swapped(column).tobytes()


def _swapped(column: array[Any]) -> array[Any]:
    copy = column[:]
    copy.byteswap()
    return copy


# --- curves -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Owned:
    """Steps that a generation gave to the merged curve: after `start`, through `kept_through` (None: no end yet)."""

    start: int
    kept_through: int | None

    def holds(self, step: int) -> bool:
        return step > self.start and (self.kept_through is None or step <= self.kept_through)


def ownership(generations: Iterable[GenerationRow]) -> dict[int, Owned]:
    """Who owns which steps, by generation. A later one that began earlier takes everything after its start."""
    rows = sorted(generations, key=lambda row: row.no)
    owned: dict[int, Owned] = {}
    until: int | None = None
    for row in reversed(rows):
        owned[row.no] = Owned(row.start_step, until)
        until = row.start_step if until is None else min(until, row.start_step)
    return owned


@dataclass(frozen=True)
class Points:
    """A part of a curve: of the merged one if `generation` is None, else of one generation, kept or lost."""

    name: str
    generation: int | None
    machine: UUID | None
    lost: bool
    steps: list[int]
    times: list[float]
    values: list[float]


def curves(
    db: Read,
    job: UUID,
    names: Sequence[str] | None = None,
    *,
    merged: bool = True,
    first: int = 0,
    last: int | None = None,
) -> list[Points]:
    """The job's metrics by name, all if none are named: the merged curve, or every generation's with its lost work."""
    owned = ownership(db.sql.scalars(select(GenerationRow).where(GenerationRow.job == job)))
    query = (
        select(MetricChunkRow, SeriesRow.name)
        .join(SeriesRow, SeriesRow.id == MetricChunkRow.series)
        .where(SeriesRow.job == job)
    )
    if names is not None:
        query = query.where(SeriesRow.name.in_(names))
    query = query.where(MetricChunkRow.last_step >= first)
    if last is not None:
        query = query.where(MetricChunkRow.first_step <= last)
    parts: dict[_Part, dict[int, tuple[float, float]]] = defaultdict(dict)
    for chunk, name in db.sql.execute(
        query.order_by(SeriesRow.name, MetricChunkRow.generation, MetricChunkRow.machine, MetricChunkRow.seq)
    ):
        of_machine = chunk.machine if name.startswith(SYSTEM) else None
        for step, time, value in unpacked(chunk):
            kept = bool(of_machine) or (chunk.generation in owned and owned[chunk.generation].holds(step))
            if step < first or (last is not None and step > last) or (merged and not kept):
                continue
            generation = None if merged or of_machine else chunk.generation
            parts[_Part(name, generation, of_machine, not kept)][step] = (time, value)
    return [_points(*key, part) for key, part in sorted(parts.items(), key=lambda item: item[0].place)]


def energy(db: Read, job: UUID) -> list[Points]:
    """The readings of the energy meters of the job's machines: joules, from each machine's beginning."""
    query = select(SeriesRow.name).where(SeriesRow.job == job, SeriesRow.name.like(f"{SYSTEM}%{ENERGY}"))
    names = list(db.sql.scalars(query))
    return curves(db, job, names) if names else []


class _Part(NamedTuple):
    name: str
    generation: int | None
    machine: UUID | None
    lost: bool

    @property
    def place(self) -> tuple[str, int, int, bool]:
        return self.name, self.generation or 0, self.machine.int if self.machine else 0, self.lost


def batch(db: Read, machine: UUID, seq: int) -> tuple[list[Points], list[Line]]:
    """What one batch brought, for the live stream: its points as reported, and the log lines that end in it."""
    query = select(MetricChunkRow, SeriesRow.name).join(SeriesRow, SeriesRow.id == MetricChunkRow.series)
    query = query.where(MetricChunkRow.machine == machine, MetricChunkRow.seq == seq).order_by(SeriesRow.name)
    points = [
        _points(name, chunk.generation, machine, False, {step: (time, value) for step, time, value in unpacked(chunk)})
        for chunk, name in db.sql.execute(query)
    ]
    rows = db.sql.scalars(
        select(LogChunkRow)
        .where(LogChunkRow.machine == machine, LogChunkRow.seq == seq)
        .order_by(LogChunkRow.rank, LogChunkRow.byte_offset)
    )
    lines: list[Line] = []
    readers: dict[int, _LineReader] = {}
    for row in rows:
        if row.rank not in readers:
            readers[row.rank] = _before(db, row)
        lines += readers[row.rank].feed(row)
    return points, lines


def _points(
    name: str, generation: int | None, machine: UUID | None, lost: bool, part: Mapping[int, tuple[float, float]]
) -> Points:
    steps = sorted(part)
    return Points(
        name, generation, machine, lost, steps, [part[step][0] for step in steps], [part[step][1] for step in steps]
    )


def unpacked(chunk: MetricChunkRow) -> Iterable[tuple[int, float, float]]:
    """Its points: (step, Unix seconds, value)."""
    columns = []
    for kind, data in (("q", chunk.steps), ("d", chunk.times), ("d", chunk.vals)):
        column: array[Any] = array(kind)
        column.frombytes(data)
        if sys.byteorder == "big":
            column.byteswap()
        columns.append(column)
    return zip(*columns, strict=True)


# --- logs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    machine: UUID
    rank: int
    offset: int
    """Of its first byte in the rank's stream."""
    text: str


@dataclass
class LogPosition:
    """How far a reader has come: of each machine the batch to go on with, of each rank the first byte not shown."""

    seqs: dict[UUID, int] = field(default_factory=dict)
    offsets: dict[UUID, dict[int, int]] = field(default_factory=dict)

    def text(self) -> str:
        """Opaque, for the outside."""
        marks = {m.hex: [seq, self.offsets.get(m, {})] for m, seq in self.seqs.items()}
        return base64.urlsafe_b64encode(json.dumps(marks, separators=(",", ":")).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> LogPosition:
        """Raises InvalidRequest for what `text` never made."""
        position = cls()
        try:
            marks = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
            for machine, (seq, offsets) in marks.items():
                position.seqs[UUID(machine)] = _count(seq)
                position.offsets[UUID(machine)] = {int(rank): _count(offset) for rank, offset in offsets.items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise InvalidRequest(
                "This cursor is not one that this service gave you.", hint="Start without one."
            ) from None
        return position


def lines(
    db: Read,
    job: UUID,
    *,
    rank: int | None = None,
    machine: UUID | None = None,
    after: LogPosition | None = None,
    limit: int = 1000,
) -> tuple[list[Line], LogPosition]:
    """The next lines of a job's log, in the order they arrived, and the position behind them.

    A line ends with its newline; the last one of a terminated machine needs none.
    """
    after = after or LogPosition()
    log = _Log(db, job, rank, machine, after)
    readers: dict[tuple[UUID, int], _LineReader] = {
        (m, r): _LineReader(m, r, offset, after.seqs[m])
        for m, ranks in after.offsets.items()
        for r, offset in ranks.items()
    }
    return log.read(log.rows(), readers, limit)


def tail(
    db: Read, job: UUID, count: int, *, rank: int | None = None, machine: UUID | None = None
) -> tuple[list[Line], LogPosition]:
    """The last `count` lines of a job's log, and the position behind them."""
    log = _Log(db, job, rank, machine, LogPosition())
    rows: list[LogChunkRow] = []
    newlines = 0
    for row in log.rows(newest_first=True):
        rows.insert(0, row)
        newlines += (row.bytes or b"").count(b"\n")
        if newlines > count + len({(row.machine, row.rank) for row in rows}):  # each stream may begin within a line
            break
    readers: dict[tuple[UUID, int], _LineReader] = {}
    for row in rows:
        ragged = row.byte_offset > 0
        readers.setdefault(
            (row.machine, row.rank), _LineReader(row.machine, row.rank, row.byte_offset, row.seq, ragged=ragged)
        )
    found, position = log.read(rows, readers, sys.maxsize)
    return (found[-count:] if count else []), position


class _Log:
    """The rows of a job's log from a position on. Keys are sorted first, because rows are large."""

    def __init__(self, db: Read, job: UUID, rank: int | None, machine: UUID | None, after: LogPosition) -> None:
        self._db, self._after = db, after
        machines = db.sql.execute(select(MachineRow.id, MachineRow.state).where(MachineRow.job == job))
        self._states: dict[UUID, str] = {id_: state for id_, state in machines if machine in (None, id_)}
        self._rank = rank

    def rows(self, *, newest_first: bool = False) -> Iterator[LogChunkRow]:
        keys = [key for machine in self._states for key in self._keys(machine)]
        for _, machine, _, rank, offset in sorted(keys, reverse=newest_first):
            yield self._db.sql.get_one(LogChunkRow, (machine, rank, offset))

    def _keys(self, machine: UUID) -> Iterable[tuple[int, UUID, int, int, int]]:
        query = select(
            LogChunkRow.at, LogChunkRow.machine, LogChunkRow.seq, LogChunkRow.rank, LogChunkRow.byte_offset
        ).where(LogChunkRow.machine == machine, LogChunkRow.seq >= self._after.seqs.get(machine, 0))
        if self._rank is not None:
            query = query.where(LogChunkRow.rank == self._rank)
        return [(at, machine, seq, rank, offset) for at, machine, seq, rank, offset in self._db.sql.execute(query)]

    def read(
        self, rows: Iterable[LogChunkRow], readers: dict[tuple[UUID, int], _LineReader], limit: int
    ) -> tuple[list[Line], LogPosition]:
        found: list[Line] = []
        position = LogPosition(dict(self._after.seqs), {m: dict(ranks) for m, ranks in self._after.offsets.items()})
        for row in rows:
            reader = readers.setdefault((row.machine, row.rank), _LineReader(row.machine, row.rank, 0, row.seq))
            found += reader.feed(row, limit - len(found))
            position.seqs[row.machine] = row.seq + 1
            if len(found) >= limit:
                position.seqs[row.machine] = row.seq  # other ranks' rows of this batch may be unread
                break
        for (machine, rank), reader in readers.items():
            if self._states.get(machine) == "terminated" and len(found) < limit:
                found += reader.rest()
            position.offsets.setdefault(machine, {})[rank] = reader.offset
            if reader.pending:
                position.seqs[machine] = min(position.seqs[machine], reader.seq)
        return found, position


class _LineReader:
    """Cuts one rank's stream into lines: what a terminal would show of each, with its colours."""

    def __init__(self, machine: UUID, rank: int, offset: int, seq: int, *, ragged: bool = False) -> None:
        self._machine, self._rank = machine, rank
        self._ragged = ragged
        self.offset = offset
        """Of the first byte not shown yet."""
        self.seq = seq
        """Of the batch that this byte came with."""
        self.pending = bytearray()

    def feed(self, row: LogChunkRow, room: int = sys.maxsize) -> list[Line]:
        """At most `room` lines that end in this row."""
        data = row.bytes or b""
        expected = self.offset + len(self.pending)
        found: list[Line] = []
        if row.byte_offset > expected:  # bytes are missing: what came before them is all there is of its line
            found += self.rest()
            expected = self.offset = row.byte_offset
        if not self.pending:
            self.seq = row.seq
        self.pending += data[max(0, expected - row.byte_offset) :]
        begin = 0
        while len(found) < room:
            end = self.pending.find(b"\n", begin, begin + MAX_LINE_BYTES)
            if end < 0 and len(self.pending) - begin < MAX_LINE_BYTES:
                break
            end = end + 1 if end >= 0 else begin + MAX_LINE_BYTES
            if not self._ragged:
                found.append(self._line(begin, end))
            self._ragged = False
            begin = end
        if begin:
            self._drop(begin)
            self.seq = row.seq
        return found

    def rest(self) -> list[Line]:
        """What stands after the last newline."""
        if not self.pending or self._ragged:
            return []
        line = self._line(0, len(self.pending))
        self._drop(len(self.pending))
        return [line]

    def _line(self, begin: int, end: int) -> Line:
        shown = bytes(self.pending[begin:end]).rstrip(b"\r\n").rpartition(b"\r")[2]
        text = shown.decode("utf-8", "replace").replace("\0", "\ufffd")
        return Line(self._machine, self._rank, self.offset + begin, text)

    def _drop(self, count: int) -> None:
        del self.pending[:count]
        self.offset += count


def _before(db: Read, row: LogChunkRow) -> _LineReader:
    """A reader that holds the beginning of the line on which `row` goes on."""
    held: list[LogChunkRow] = []
    size, first = 0, row.byte_offset
    while size < MAX_LINE_BYTES:
        query = select(LogChunkRow).where(
            LogChunkRow.machine == row.machine, LogChunkRow.rank == row.rank, LogChunkRow.byte_offset < first
        )
        earlier = db.sql.scalar(query.order_by(LogChunkRow.byte_offset.desc()).limit(1))
        if earlier is None or earlier.byte_offset + len(earlier.bytes or b"") != first:
            break
        held.insert(0, earlier)
        size, first = size + len(earlier.bytes or b""), earlier.byte_offset
        if b"\n" in (earlier.bytes or b""):
            break
    reader = _LineReader(row.machine, row.rank, first, row.seq)
    for earlier in held:
        reader.feed(earlier)
    return reader


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(value)
    return value

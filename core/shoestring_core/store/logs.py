# SPDX-License-Identifier: Apache-2.0
"""Logs: bytes of each rank's output, stored as they arrive, and read as lines."""

from __future__ import annotations

import base64
import binascii
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import select

from shoestring_core import wire
from shoestring_core.errors import InvalidRequest
from shoestring_core.store.cursors import InvalidCursor, decode_cursor, encode_cursor
from shoestring_core.store.tables import LogChunkRow, MachineRow
from shoestring_core.store.transactions import Read, Write

MAX_LINE_BYTES = 64 * 1024
"""A longer line is cut into several."""


# --- appending --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecodedLogChunk:
    """Consecutive bytes of a rank's output; `offset` is that of the first in the rank's stream."""

    rank: int
    offset: int
    data: bytes


def decode_chunks(chunks: Sequence[wire.LogChunk]) -> list[DecodedLogChunk]:
    """The chunks that aren't empty. Raises InvalidRequest for invalid base64."""
    decoded = []
    for chunk in chunks:
        try:
            data = base64.b64decode(chunk.data_b64, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest(f"The log of rank {chunk.rank} is not valid base64.") from None
        if data:
            decoded.append(DecodedLogChunk(chunk.rank, chunk.offset, data))
    return decoded


def append(db: Write, machine: UUID, seq: int, chunks: Sequence[DecodedLogChunk]) -> None:
    """Store the log chunks of a machine's batch `seq`; bytes at an offset that is stored already are ignored."""
    rows = [
        {"machine": machine, "rank": chunk.rank, "byte_offset": chunk.offset, "seq": seq,
         "received_at": db.now, "data": chunk.data}
        for chunk in chunks
    ]  # fmt: skip
    if rows:
        db.insert_missing(LogChunkRow, rows)


# --- reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredLogLine:
    """`offset`: of its first byte in the rank's stream."""

    machine: UUID
    rank: int
    offset: int
    text: str


@dataclass
class LogPosition:
    """How far a reader is: the next batch of each machine, and the first unread byte of each of its ranks."""

    next_seqs: dict[UUID, int] = field(default_factory=dict)
    offsets: dict[UUID, dict[int, int]] = field(default_factory=dict)

    def to_cursor(self) -> str:
        """An opaque cursor for clients."""
        content = {machine.hex: [seq, self.offsets.get(machine, {})] for machine, seq in self.next_seqs.items()}
        return encode_cursor(json.dumps(content, separators=(",", ":")).encode())

    @classmethod
    def from_cursor(cls, cursor: str) -> LogPosition:
        """Raises InvalidCursor for what `to_cursor` never returned."""
        position = cls()
        try:
            content = json.loads(decode_cursor(cursor))
            for machine, (seq, offsets) in content.items():
                position.next_seqs[UUID(machine)] = _natural(seq)
                position.offsets[UUID(machine)] = {int(rank): _natural(offset) for rank, offset in offsets.items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise InvalidCursor from None
        return position


def load_lines(
    db: Read,
    job: UUID,
    *,
    rank: int | None = None,
    machine: UUID | None = None,
    after: LogPosition | None = None,
    limit: int = 1000,
) -> tuple[list[StoredLogLine], LogPosition]:
    """The next lines of a job's log in the order of their arrival, and the position after them.

    A line ends with its newline; the last one of a terminated machine needs none.
    """
    after = after or LogPosition()
    log = _JobLog(db, job, rank, machine, after)
    splitters: dict[tuple[UUID, int], _LineSplitter] = {
        (m, r): _LineSplitter(m, r, offset, after.next_seqs[m])
        for m, ranks in after.offsets.items()
        for r, offset in ranks.items()
    }
    return log.read(log.rows(), splitters, limit)


def load_tail(
    db: Read, job: UUID, count: int, *, rank: int | None = None, machine: UUID | None = None
) -> tuple[list[StoredLogLine], LogPosition]:
    """The last `count` lines of a job's log, and the position after them."""
    log = _JobLog(db, job, rank, machine, LogPosition())
    rows: list[LogChunkRow] = []
    newlines = 0
    for row in log.rows(newest_first=True):
        rows.insert(0, row)
        newlines += row.data.count(b"\n")
        if newlines > count + len({(row.machine, row.rank) for row in rows}):  # each stream may begin within a line
            break
    splitters: dict[tuple[UUID, int], _LineSplitter] = {}
    for row in rows:
        splitters.setdefault(
            (row.machine, row.rank),
            _LineSplitter(row.machine, row.rank, row.byte_offset, row.seq, within_line=row.byte_offset > 0),
        )
    lines, position = log.read(rows, splitters, sys.maxsize)
    return (lines[-count:] if count else []), position


def load_batch_lines(db: Read, machine: UUID, seq: int) -> list[StoredLogLine]:
    """The lines that end in a machine's batch `seq`."""
    rows = db.sql.scalars(
        select(LogChunkRow)
        .where(LogChunkRow.machine == machine, LogChunkRow.seq == seq)
        .order_by(LogChunkRow.rank, LogChunkRow.byte_offset)
    )
    lines: list[StoredLogLine] = []
    splitters: dict[int, _LineSplitter] = {}
    for row in rows:
        if row.rank not in splitters:
            splitters[row.rank] = _splitter_before(db, row)
        lines += splitters[row.rank].feed(row)
    return lines


class _JobLog:
    """The rows of a job's log after a position. Their keys are sorted first, because rows are large."""

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
        query = select(LogChunkRow.received_at, LogChunkRow.seq, LogChunkRow.rank, LogChunkRow.byte_offset).where(
            LogChunkRow.machine == machine, LogChunkRow.seq >= self._after.next_seqs.get(machine, 0)
        )
        if self._rank is not None:
            query = query.where(LogChunkRow.rank == self._rank)
        return [(at, machine, seq, rank, offset) for at, seq, rank, offset in self._db.sql.execute(query)]

    def read(
        self, rows: Iterable[LogChunkRow], splitters: dict[tuple[UUID, int], _LineSplitter], limit: int
    ) -> tuple[list[StoredLogLine], LogPosition]:
        lines: list[StoredLogLine] = []
        next_seqs = dict(self._after.next_seqs)
        offsets = {machine: dict(ranks) for machine, ranks in self._after.offsets.items()}
        for row in rows:
            splitter = splitters.setdefault((row.machine, row.rank), _LineSplitter(row.machine, row.rank, 0, row.seq))
            lines += splitter.feed(row, limit - len(lines))
            next_seqs[row.machine] = row.seq + 1
            if len(lines) >= limit:
                next_seqs[row.machine] = row.seq  # other ranks' rows of this batch may be unread
                break
        for (machine, rank), splitter in splitters.items():
            if self._states.get(machine) == "terminated" and len(lines) < limit:
                lines += splitter.flush()
            offsets.setdefault(machine, {})[rank] = splitter.offset
            if splitter.buffer:
                next_seqs[machine] = min(next_seqs[machine], splitter.seq)
        return lines, LogPosition(next_seqs, offsets)


class _LineSplitter:
    """Splits one rank's stream into lines: what a terminal would show of each, with its colours.

    within_line  the stream is read from within a line, whose rest is dropped
    """

    def __init__(self, machine: UUID, rank: int, offset: int, seq: int, *, within_line: bool = False) -> None:
        self._machine, self._rank = machine, rank
        self._within_line = within_line
        self.offset = offset
        """Of the first byte in the buffer."""
        self.seq = seq
        """Number of the batch that contained this byte."""
        self.buffer = bytearray()

    def feed(self, row: LogChunkRow, limit: int = sys.maxsize) -> list[StoredLogLine]:
        """At most `limit` lines that end in this row."""
        data = row.data
        expected = self.offset + len(self.buffer)
        lines: list[StoredLogLine] = []
        if row.byte_offset > expected:  # bytes are missing: the line in the buffer will never be complete
            lines += self.flush()
            expected = self.offset = row.byte_offset
        if not self.buffer:
            self.seq = row.seq
        self.buffer += data[max(0, expected - row.byte_offset) :]
        begin = 0
        while len(lines) < limit:
            end = self.buffer.find(b"\n", begin, begin + MAX_LINE_BYTES)
            if end < 0 and len(self.buffer) - begin < MAX_LINE_BYTES:
                break
            end = end + 1 if end >= 0 else begin + MAX_LINE_BYTES
            if not self._within_line:
                lines.append(self._line(begin, end))
            self._within_line = False
            begin = end
        if begin:
            self._drop(begin)
            self.seq = row.seq
        return lines

    def flush(self) -> list[StoredLogLine]:
        """What follows the last newline, as a line."""
        if not self.buffer or self._within_line:
            return []
        line = self._line(0, len(self.buffer))
        self._drop(len(self.buffer))
        return [line]

    def _line(self, begin: int, end: int) -> StoredLogLine:
        visible = bytes(self.buffer[begin:end]).rstrip(b"\r\n").rpartition(b"\r")[2]
        text = visible.decode("utf-8", "replace").replace("\0", "\ufffd")
        return StoredLogLine(self._machine, self._rank, self.offset + begin, text)

    def _drop(self, count: int) -> None:
        del self.buffer[:count]
        self.offset += count


def _splitter_before(db: Read, row: LogChunkRow) -> _LineSplitter:
    """A splitter that has the beginning of the line with which `row` starts in its buffer."""
    earlier: list[LogChunkRow] = []
    size, first = 0, row.byte_offset
    while size < MAX_LINE_BYTES:
        query = select(LogChunkRow).where(
            LogChunkRow.machine == row.machine, LogChunkRow.rank == row.rank, LogChunkRow.byte_offset < first
        )
        previous = db.sql.scalar(query.order_by(LogChunkRow.byte_offset.desc()).limit(1))
        if previous is None or previous.byte_offset + len(previous.data) != first:
            break
        earlier.insert(0, previous)
        size, first = size + len(previous.data), previous.byte_offset
        if b"\n" in previous.data:
            break
    splitter = _LineSplitter(row.machine, row.rank, first, row.seq)
    for previous in earlier:
        splitter.feed(previous)
    return splitter


def _natural(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(value)
    return value

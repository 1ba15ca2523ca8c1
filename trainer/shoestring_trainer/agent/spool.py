# SPDX-License-Identifier: Apache-2.0
"""Reports that the service has not stored yet: numbered batches, kept on disk until acknowledged.

A file `000000012.json` holds batch 12 and `reader_state`: how far the machine's files had been read when it was
sealed. The newest file stays even when acknowledged, so that after a kill the next agent resumes reading there.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from shoestring_core.wire import MAX_BATCH_BYTES, AgentEvent, LogChunk, MetricSeries, ReportBatch

log = logging.getLogger(__name__)

BATCH_BYTES = MAX_BATCH_BYTES * 6 // 10  # leaves room for what the estimate misses and for the rest of the report
POINT_BYTES = 70  # a step, a time and a value, written out
MAX_ITEMS, MAX_POINTS = 1_900, 19_000  # a little below what `wire.ReportBatch` and `wire.MetricSeries` allow
MAX_UNSENT_BYTES_WITH_LOGS = 256 << 20  # beyond this much unsent, logs stay on the machine; points and events never do


@dataclass
class Draft:
    """A batch that still grows."""

    points: dict[str, tuple[list[int], list[float], list[float]]] = field(default_factory=dict)
    logs: list[LogChunk] = field(default_factory=list)
    events: list[AgentEvent] = field(default_factory=list)
    bytes: int = 0

    @property
    def full(self) -> bool:
        longest = max((len(steps) for steps, _, _ in self.points.values()), default=0)
        return (
            self.bytes > BATCH_BYTES
            or max(len(self.points), len(self.logs), len(self.events)) > MAX_ITEMS
            or longest > MAX_POINTS
        )

    def batch(self, seq: int, generation: int) -> ReportBatch:
        series = [MetricSeries(name=name, steps=s, times=t, values=v) for name, (s, t, v) in self.points.items()]
        return ReportBatch(seq=seq, generation=generation, points=series, logs=self.logs, events=self.events)


class LogQuota(BaseModel):
    """What was read in an hour (since 1970): bytes of logs, and events of ranks."""

    hour: int = 0
    bytes: int = 0
    reported: bool = False
    events: int = 0


class ReaderState(BaseModel):
    """How far the machine's files have been read: bytes of each file, and of each rank's log."""

    files: dict[str, int] = {}
    streams: dict[int, int] = {}
    quota: LogQuota = LogQuota()


class SpoolFile(BaseModel):
    batch: ReportBatch
    reader_state: ReaderState | None


class Spool:
    """`reader_state` belongs to the reader of the machine's files; it is saved with each batch.

    A disk that can't be written sets `write_error` and raises nothing: batches then wait in memory, so that the service
    can still be told why the machine leaves.
    """

    def __init__(self, folder: Path, rejected: Path) -> None:
        self.write_error: OSError | None = None
        self.acked = 0
        self.generation = 0
        self.reader_state = ReaderState()
        self._folder, self._rejected = folder, rejected
        self._draft = Draft()
        self._sizes: dict[int, int] = {}  # unacknowledged batches; bytes
        self._unsaved: dict[int, ReportBatch] = {}
        self._load()

    @property
    def last_seq(self) -> int:
        """The highest number given to a batch."""
        return max(self._sizes, default=self.acked)

    @property
    def unacknowledged(self) -> int:
        """How many sealed batches the service has not acknowledged."""
        return len(self._sizes)

    @property
    def has_draft(self) -> bool:
        """Something was added since the last batch was sealed."""
        return self._draft.bytes > 0

    @property
    def accepts_logs(self) -> bool:
        return sum(self._sizes.values()) < MAX_UNSENT_BYTES_WITH_LOGS

    def begin_generation(self, generation: int) -> None:
        """What is added from here on belongs to `generation`."""
        self.seal()
        self.generation = generation

    def add_points(self, step: int, at: float, values: dict[str, float]) -> None:
        """Add one line of metrics. It is stored in one batch."""
        if self._draft.full or any(
            name in self._draft.points and self._draft.points[name][0][-1] > step for name in values
        ):
            self.seal()  # within a batch the steps of a series never decrease
        for name, value in values.items():
            if name not in self._draft.points:
                self._draft.points[name] = ([], [], [])
                self._draft.bytes += 80 + 2 * len(name.encode())
            steps, times, numbers = self._draft.points[name]
            steps.append(step)
            times.append(at)
            numbers.append(value)
            self._draft.bytes += POINT_BYTES

    def add_log(self, rank: int, offset: int, data: bytes) -> None:
        if self._draft.full:
            self.seal()
        self._draft.logs.append(LogChunk(rank=rank, offset=offset, data_b64=base64.b64encode(data).decode()))
        self._draft.bytes += 80 + len(data) * 4 // 3

    def add_event(self, kind: str, data: dict[str, Any], *, step: int | None = None, at: float | None = None) -> None:
        if self._draft.full:
            self.seal()
        at = time.time() if at is None else at
        try:
            json.dumps(data, allow_nan=False)  # JSON has no NaN
            event = AgentEvent(kind=kind, at=at, step=step, data=data)
            text = SpoolFile(batch=Draft(events=[event]).batch(1, 0), reader_state=None).model_dump_json()
            SpoolFile.model_validate_json(text)
            size = len(text.encode())
        except (ValueError, RecursionError):  # UTF-8 has no half of a surrogate pair, and parsers nest 200 levels
            event = AgentEvent(kind=kind, at=at, step=step, data={"text": repr(data)[:1000]})
            size = 1200
        self._draft.events.append(event)
        self._draft.bytes += size

    def seal(self) -> int:
        """Give what was added a number and a file; returns the last number, which holds all that was added before."""
        if self.has_draft:
            seq = self.last_seq + 1
            batch = self._draft.batch(seq, self.generation)
            self._draft = Draft()
            self._save(seq, batch)
        return self.last_seq

    def oldest(self) -> ReportBatch | None:
        """The oldest batch that is not acknowledged."""
        return self._batch(min(self._sizes)) if self._sizes else None

    def acknowledge(self, seq: int) -> None:
        """The service has stored every batch up to `seq`."""
        if seq <= self.acked:
            return
        newest = self.last_seq
        self.acked = seq
        for old in [number for number in self._sizes if number <= seq]:
            del self._sizes[old]
            self._unsaved.pop(old, None)
        for path in self._files():
            if int(path.stem) <= seq and int(path.stem) != newest:
                path.unlink(missing_ok=True)

    def resend_from(self, seq: int) -> None:
        """The service expects batch `seq` next. Requested batches that were already deleted are reported as lost."""
        newest = self.last_seq
        self.acknowledge(seq - 1)
        self.acked = seq - 1
        for number in range(seq, newest + 1):
            if number not in self._sizes and self._path(number).exists():
                self._sizes[number] = self._path(number).stat().st_size
            elif number not in self._sizes:
                self._save(
                    number,
                    self._placeholder_batch(number, "warning", "this batch was lost on the machine"),
                    reader_state=number == newest,
                )

    def set_aside(self, seq: int, reason: str) -> bool:
        """Put a batch that is refused for good aside and send its number without it; False if that was done before."""
        self.seal()  # a rewritten newest file must not carry reader_state of what is not in it
        batch = self._batch(seq)
        if [event.kind for event in batch.events] == ["rejected"]:
            return False
        self._write(self._rejected / f"{seq:09}.json", batch.model_dump_json())
        self._save(
            seq,
            self._placeholder_batch(seq, "rejected", reason, generation=batch.generation),
            reader_state=seq == self.last_seq,
        )
        return True

    def _placeholder_batch(self, seq: int, kind: str, reason: str, generation: int | None = None) -> ReportBatch:
        event = AgentEvent(kind=kind, at=time.time(), data={"seq": seq, "message": reason[:1000]})
        return Draft(events=[event]).batch(seq, self.generation if generation is None else generation)

    def _load(self) -> None:
        for path in self._files():
            try:
                saved = SpoolFile.model_validate_json(path.read_bytes())
                self.reader_state, self.generation = saved.reader_state or self.reader_state, saved.batch.generation
                self._sizes[int(path.stem)] = path.stat().st_size
            except ValueError as error:
                log.warning("spool file %s is unreadable (%s); its batch is lost", path.name, error)
                path.rename(self._rejected / path.name)

    def _batch(self, seq: int) -> ReportBatch:
        if seq in self._unsaved:
            return self._unsaved[seq]
        return SpoolFile.model_validate_json(self._path(seq).read_bytes()).batch

    def _save(self, seq: int, batch: ReportBatch, *, reader_state: bool = True) -> None:
        file = SpoolFile(batch=batch, reader_state=self.reader_state if reader_state else None)
        text = file.model_dump_json()
        self._sizes[seq] = len(text.encode())
        if not self._write(self._path(seq), text):
            self._unsaved[seq] = batch

    def _write(self, path: Path, text: str) -> bool:
        try:
            write_durably(path, text)
            return True
        except OSError as error:
            self.write_error = error
            return False

    def _path(self, seq: int) -> Path:
        return self._folder / f"{seq:09}.json"

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.json"))


def write_durably(path: Path, text: str) -> None:
    """Whole and on the disk, or not at all."""
    draft = path.with_suffix(".tmp")
    with draft.open("w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

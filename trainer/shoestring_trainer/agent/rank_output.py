# SPDX-License-Identifier: Apache-2.0
"""Reads what the ranks of one generation write (metrics, events, logs) into the spool, as it appears.

How far each file was read lives in the spool's marks, so nothing is sent twice or skipped when an agent is killed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring_core.json_floats import decode_float
from shoestring_core.wire import LATEST_TIME, LOG_BYTES_PER_HOUR

from shoestring_trainer.agent.rank_files import open_file
from shoestring_trainer.agent.spool import LogQuota, Spool
from shoestring_trainer.run_files import printable

LINES_BYTES = 1 << 20
LOG_BYTES = 64 << 10
MAX_EVENTS_PER_HOUR = 2_000
"""Events of ranks that are sent, checkpoints apart: training has a few, and a hook could write any number."""
AGENT_RANK = -1
RANK_SERVER_LOG = "rank-server.log"
MACHINE_LOGS = ("agent.log", RANK_SERVER_LOG)


@dataclass(frozen=True)
class RankEvent:
    """A line of events.jsonl."""

    name: str
    at: float
    data: dict[str, Any]


class RankOutputCollector:
    """Moves what the ranks write into the spool. Before `follow`: only the logs of the agent and the rank server."""

    def __init__(self, machine: Path, spool: Spool) -> None:
        self._machine, self._spool = machine, spool
        self._state = spool.reader_state
        self._open: dict[str, int] = {}
        self._run: str | None = None
        self._ranks: list[int] = []

    def follow(self, run: Path, ranks: list[int]) -> None:
        """Read the files of this folder from now on. The spool knows the generation."""
        self._close()
        self._run, self._ranks = str(run.relative_to(self._machine)), ranks
        kept = (f"{self._run}/", *MACHINE_LOGS)
        self._state.files = {name: at for name, at in self._state.files.items() if name.startswith(kept)}

    def read(self, *, to_the_end: bool = False) -> list[RankEvent]:
        """Move what is new into the spool; returns the ranks' new events. Of long logs a piece, or all `to_the_end`.

        Events are read before the metrics, so each metric line written before an event is in the spool when it returns.
        """
        events = [event for line in self._lines("events.jsonl") if (event := self._event(line))]
        for line in self._lines("metrics.jsonl"):
            self._metrics(line)
        logs = [(AGENT_RANK, name) for name in MACHINE_LOGS]
        if self._run:
            logs.append((AGENT_RANK, f"{self._run}/log-launch.txt"))
            logs += [(rank, f"{self._run}/log-rank{rank}.txt") for rank in self._ranks]
        for rank, name in logs:
            while self._log(rank, name) and to_the_end:
                pass
        return events

    def all_events(self) -> list[RankEvent]:
        """Every event that the ranks have written so far."""
        try:
            with os.fdopen(open_file(self._machine / f"{self._run}/events.jsonl"), "rb") as file:
                lines = iter(lambda: file.readline(LINES_BYTES), b"")
                return [event for line in lines if line.strip() and (event := self._event(line))]
        except OSError:
            return []

    def _metrics(self, line: bytes) -> None:
        try:
            point = json.loads(line)
            step, at = point["step"], float(point["t"])
            values = {name: decode_float(value) for name, value in point["v"].items()}
            if "epoch" in point:
                values["epoch"] = decode_float(point["epoch"])
            if type(step) is not int or not 0 <= step <= 2**62 or not 0 <= at <= LATEST_TIME:
                raise ValueError("step must be a whole number from 0 on, t a time")
            if not all(len(name.encode()) >= 1 and len(name) <= 250 for name in values) or len(values) > 1_000:
                raise ValueError("names must have 1 to 250 characters, and a line at most 1000 of them")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            self._warn("metrics.jsonl", line, error)
        else:
            self._spool.add_points(step, at, values)

    def _event(self, line: bytes) -> RankEvent | None:
        try:
            data = json.loads(line)
            name, at = printable(str(data.pop("event")))[:40] or "unnamed", float(data.pop("t"))
            if not 0 <= at <= LATEST_TIME:
                raise ValueError("t must be a time")
            return RankEvent(name, at, data) if name == "checkpoint" or self._may_send_event() else None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            self._warn("events.jsonl", line, error)
            return None

    def warn(self, message: str, **data: str) -> None:
        """Tell what is wrong with what ranks wrote, as one of their events."""
        if self._may_send_event():
            self._spool.add_event("warning", {"message": message[:500], **data})

    def _warn(self, name: str, line: bytes, error: Exception) -> None:
        text = line[:200].decode(errors="replace").replace("\0", "\ufffd")
        self.warn(f"a line of {name} can't be read: {error!r}", line=text)

    def _lines(self, name: str) -> Iterator[bytes]:
        """Whole lines that are new. One without its end is left for later, unless it is longer than any could be."""
        if self._run is None:
            return
        name = f"{self._run}/{name}"
        while block := self._read(name, LINES_BYTES):
            whole = block[: block.rfind(b"\n") + 1] or (block if len(block) == LINES_BYTES else b"")
            if not whole:
                return
            for line in whole.splitlines(keepends=True):
                if line.strip():
                    yield line
                self._advance(name, len(line))

    def _log(self, rank: int, name: str) -> bool:
        block = self._read(name, LOG_BYTES)
        if not block:
            return False
        offset, size = self._state.streams.get(rank, 0), len(block)
        if self._within_quota(size):
            self._spool.add_log(rank, offset, block)
        elif self._quota().bytes > LOG_BYTES_PER_HOUR:  # none of it is sent, so none of it is read: it may be long
            size = max(size, os.fstat(self._open[name]).st_size - self._state.files.get(name, 0))
        self._state.streams[rank] = offset + size  # what was dropped leaves a gap in the stream
        self._advance(name, size)
        return True

    def _quota(self) -> LogQuota:
        hour = int(time.time() // 3600)
        if self._state.quota.hour != hour:
            self._state.quota = LogQuota(hour=hour)
        return self._state.quota

    def _may_send_event(self) -> bool:
        quota = self._quota()
        quota.events += 1
        if quota.events == MAX_EVENTS_PER_HOUR + 1:
            message = "too many events; the rest of this hour's stay in the machine's folder"
            self._spool.add_event("warning", {"message": message})
        return quota.events <= MAX_EVENTS_PER_HOUR

    def _within_quota(self, size: int) -> bool:
        quota = self._quota()
        quota.bytes += size
        if quota.bytes <= LOG_BYTES_PER_HOUR and self._spool.accepts_logs:
            return True
        if not quota.reported:
            quota.reported = True
            self._spool.add_event(
                "log_quota", {"message": "too many log lines; the rest of this hour's stay in the machine's folder"}
            )
        return False

    def _read(self, name: str, most: int) -> bytes:
        """New bytes of a file, b"" if there are none or no file yet. One system call when nothing is new."""
        if name not in self._open:
            try:
                self._open[name] = open_file(self._machine / name)
            except OSError:
                return b""
        return os.pread(self._open[name], most, self._state.files.get(name, 0))

    def _advance(self, name: str, size: int) -> None:
        self._state.files[name] = self._state.files.get(name, 0) + size

    def _close(self) -> None:
        for number in self._open.values():
            os.close(number)
        self._open.clear()

# SPDX-License-Identifier: Apache-2.0
"""A machine's journal: the provider's word about it, one fsynced JSON line per event, and what those lines add up to.

    launch     token, tags, type, market, price, body_sha256       written before anything runs
    start      pid, start, boot, metadata                          the init; nothing of the machine ran before this line
    agent      pid, start, boot
    heartbeat                                                      every HEARTBEAT_S
    notice     notice_s, taken_at                                  the provider will take the machine at `taken_at`
    stop                                                           somebody asked for its end
    end        cause, code                                         every process of the machine is gone

Every line has `at`. All times are µs since the epoch, UTC. The first `end` is the end: nothing follows it.
Only the holder of the file's lock writes: so at most one init ever runs a machine, and a free lock means a dead init.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from shoestring_trainer.processes import Process

FILE = "journal.jsonl"
HEARTBEAT_S = 5.0
State = Literal["pending", "running", "stopping", "ended"]


@dataclass(frozen=True)
class MachineRecord:
    """What a journal says. Enough to bill a machine and to name its processes."""

    id: str
    token: str
    body_sha256: str
    tags: dict[str, str]
    type: str
    market: str
    price: str
    launched_at: int
    last_at: int
    started_at: int | None = None
    init: Process | None = None
    agent: Process | None = None
    metadata: str | None = None
    notice_at: int | None = None
    taken_at: int | None = None
    stop_at: int | None = None
    ended_at: int | None = None
    end_cause: str | None = None
    end_code: int | None = None

    @property
    def state(self) -> State:
        if self.ended_at is not None:
            return "ended"
        if self.stop_at is not None:
            return "stopping"
        return "running" if self.started_at is not None else "pending"


def read_machine(folder: Path) -> MachineRecord:
    """The machine of this folder. Raises FileNotFoundError without a journal, ValueError if it holds no launch."""
    record, _ = read_on(folder / FILE, None, 0)
    if record is None:
        raise ValueError(f"{folder / FILE} holds no launch")
    return record


def read_on(path: Path, record: MachineRecord | None, offset: int) -> tuple[MachineRecord | None, int]:
    """Fold the complete lines past `offset` into `record`; returns it with the offset to go on from."""
    with path.open("rb") as file:
        file.seek(offset)
        fresh = file.read()
    complete = fresh[: fresh.rfind(b"\n") + 1]
    for line in complete.splitlines():
        record = fold(record, _parse(line))
    return record, offset + len(complete)


def fold(record: MachineRecord | None, line: dict[str, Any]) -> MachineRecord | None:
    """One line more. Lines before the launch or after the end, and unreadable ones, change nothing."""
    at, event = line.get("at"), line.get("event")
    if at is None:
        return record
    if record is None:
        return _launched(line) if event == "launch" else None
    if record.ended_at is not None:
        return record
    if event == "end":
        return replace(record, last_at=at, ended_at=at, end_cause=line["cause"], end_code=line["code"])
    record = replace(record, last_at=at)
    if event == "start":
        return replace(record, started_at=at, init=_process(line), metadata=line["metadata"])
    if event == "agent":
        return replace(record, agent=_process(line))
    if event == "notice":
        return replace(record, notice_at=at, taken_at=line["taken_at"])
    if event == "stop":
        return replace(record, stop_at=at)
    return record


def end_cause(*, noticed: bool, stopped: bool, code: int | None) -> str:
    """Why a machine ended. A machine under notice was reclaimed, whatever ended it in the end.

    code  the agent's exit code, -n if signal n killed it, None if nobody saw its end
    """
    if noticed:
        return "reclaimed"
    if stopped:
        return "requested"
    return "exited" if code is not None and code >= 0 else "crashed"


def now_us() -> int:
    return time.time_ns() // 1000


class Journal:
    """The right to write a machine's journal, held as a lock on the file; the kernel frees it when its holder dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._drop_torn_line()

    @classmethod
    def create(cls, folder: Path) -> Self:
        """A new journal. Raises FileExistsError if there is one."""
        descriptor = os.open(folder / FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return cls(descriptor)

    @classmethod
    def own(cls, folder: Path) -> Self | None:
        """Take the journal, or None if another process holds it."""
        descriptor = os.open(folder / FILE, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(descriptor)

    def append(self, event: str, fields: Mapping[str, object] | None = None, *, at: int | None = None) -> None:
        """Write one line and wait until it is on the disk. Raises OSError (disk full), and then leaves no torn line."""
        line = {"at": now_us() if at is None else at, "event": event, **(fields or {})}
        left = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        size = os.fstat(self._descriptor).st_size
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop_torn_line(self) -> None:
        """A writer that lost its power may have left half a line; the next line must not be glued to it."""
        size = os.fstat(self._descriptor).st_size
        whole = os.pread(self._descriptor, size, 0).rfind(b"\n") + 1
        if whole < size:
            os.ftruncate(self._descriptor, whole)


def _parse(line: bytes) -> dict[str, Any]:
    """{} for a line that a loss of power has garbled: what the others say still holds."""
    try:
        parsed = json.loads(line)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _launched(line: dict[str, Any]) -> MachineRecord:
    names = ("id", "token", "body_sha256", "tags", "type", "market", "price")
    return MachineRecord(**{name: line[name] for name in names}, launched_at=line["at"], last_at=line["at"])


def _process(line: dict[str, Any]) -> Process:
    return Process(line["pid"], line["start"], line["boot"])

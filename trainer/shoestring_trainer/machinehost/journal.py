# SPDX-License-Identifier: Apache-2.0
"""A machine's journal: the provider's record of it, one fsynced JSON line per event, and the record they add up to.

    launch       id, token, tags, type, market, price, metadata,    written before any process starts
                 body_sha256, interface                             of a network of its own, or null
                 boot_id, booted_at                                 the machine's clock, see clock.py
    start        pid, start_time, boot_id, metadata_url             the init; no process of the machine ran before
                 bridge                                             its descriptor of the bridge's namespace, or null
    agent_start  pid, start_time, boot_id
    heartbeat                                                       every HEARTBEAT_S
    address      address                                            a public one, in place of another
    rebalance    rebalance_at                                       it is likely to be preempted
    notice       notice_s, preempt_at                               the provider ends the machine at `preempt_at`
    stop                                                            its end was requested
    end          cause, exit_code                                   every process of the machine has exited
                 clock_shift                                        how far the computer's clock was set forward (µs)

Every line has `at`. All times are µs since the epoch, UTC, by the machine's clock, which is never set. Lines after the
first `end` are ignored.
Only the holder of the file's lock writes, so at most one init runs a machine, and a free lock means that the init died.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from shoestring_trainer.machinehost.clock import Clock
from shoestring_trainer.machinehost.security_groups import Interface
from shoestring_trainer.processes import Process

JOURNAL_FILE = "journal.jsonl"
HEARTBEAT_S = 5.0
State = Literal["pending", "running", "stopping", "ended"]


@dataclass(frozen=True)
class MachineRecord:
    """The content of a journal: enough to bill a machine and to identify its processes."""

    id: str
    token: str
    body_sha256: str
    tags: dict[str, str]
    type: str
    market: str
    price: str
    metadata: dict[str, str]
    clock: Clock
    launched_at: int
    last_event_at: int
    interface: Interface | None = None
    bridge: int | None = None
    started_at: int | None = None
    init: Process | None = None
    agent: Process | None = None
    metadata_url: str | None = None
    rebalance_at: int | None = None
    notice_at: int | None = None
    preempt_at: int | None = None
    stop_requested_at: int | None = None
    ended_at: int | None = None
    end_cause: str | None = None
    exit_code: int | None = None
    clock_shift: int = 0

    @property
    def address(self) -> str:
        """Where other machines reach it."""
        return self.interface.addresses[0] if self.interface else "127.0.0.1"

    @property
    def state(self) -> State:
        if self.ended_at is not None:
            return "ended"
        if self.stop_requested_at is not None:
            return "stopping"
        return "running" if self.started_at is not None else "pending"


def read_machine(folder: Path) -> MachineRecord:
    """The record of a folder's machine. Raises FileNotFoundError without a journal, ValueError without a launch."""
    record, _ = read_new_events(folder / JOURNAL_FILE, None, 0)
    if record is None:
        raise ValueError(f"{folder / JOURNAL_FILE} contains no launch")
    return record


def read_new_events(path: Path, record: MachineRecord | None, offset: int) -> tuple[MachineRecord | None, int]:
    """Apply the complete lines after `offset` to `record`; return it with the offset to continue from."""
    with path.open("rb") as file:
        file.seek(offset)
        appended = file.read()
    complete = appended[: appended.rfind(b"\n") + 1]
    for line in complete.splitlines():
        record = apply_event(record, _parse(line))
    return record, offset + len(complete)


def apply_event(record: MachineRecord | None, line: dict[str, Any]) -> MachineRecord | None:
    """The record with one more line. Lines before the launch or after the end, and invalid ones, change nothing."""
    at, event = line.get("at"), line.get("event")
    if at is None:
        return record
    if record is None:
        return _launch(line) if event == "launch" else None
    if record.ended_at is not None:
        return record
    if event == "end":
        end = {"ended_at": at, "end_cause": line["cause"], "exit_code": line["exit_code"]}
        return replace(record, last_event_at=at, clock_shift=line["clock_shift"], **end)
    record = replace(record, last_event_at=at)
    if event == "start":
        where = {"metadata_url": line["metadata_url"], "bridge": line.get("bridge")}
        return replace(record, started_at=at, init=_process(line), **where)
    if event == "agent_start":
        return replace(record, agent=_process(line))
    if event == "address" and record.interface:
        return replace(record, interface=record.interface.with_address(line["address"]))
    if event == "rebalance":
        return replace(record, rebalance_at=line["rebalance_at"])
    if event == "notice":
        return replace(record, notice_at=at, preempt_at=line["preempt_at"])
    if event == "stop":
        return replace(record, stop_requested_at=at)
    return record


def classify_end(*, noticed: bool, stopped: bool, exit_code: int | None) -> str:
    """Why a machine ended. After a notice that is `preempted`, whatever ended it.

    exit_code  the agent's, -n if signal n killed it, None if it is unknown
    """
    if noticed:
        return "preempted"
    if stopped:
        return "requested"
    return "exited" if exit_code is not None and exit_code >= 0 else "crashed"


class Journal:
    """The right to write a machine's journal: a lock on the file, which the kernel releases when its holder dies."""

    def __init__(self, descriptor: int, clock: Clock) -> None:
        self._descriptor, self.clock = descriptor, clock
        self._drop_partial_line()

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Create and lock a journal. Raises FileExistsError if there is one."""
        descriptor = os.open(folder / JOURNAL_FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return cls(descriptor, Clock.tied_now())

    @classmethod
    def acquire(cls, folder: Path) -> Self | None:
        """Lock the journal; None if another process holds the lock."""
        descriptor = os.open(folder / JOURNAL_FILE, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(descriptor, read_machine(folder).clock)

    def append_launch(self, fields: Mapping[str, object]) -> None:
        self.append("launch", {**fields, **asdict(self.clock)})

    def append_end(self, cause: str, exit_code: int | None, at: int, **fields: object) -> None:
        end = {"cause": cause, "exit_code": exit_code, "clock_shift": self.clock.shift()}
        self.append("end", {**end, **fields}, at=at)

    def append(self, event: str, fields: Mapping[str, object] | None = None, *, at: int | None = None) -> None:
        """Write one line and fsync. Raises OSError, such as for a full disk, and then leaves no partial line."""
        line = {"at": self.clock.now() if at is None else at, "event": event, **(fields or {})}
        unwritten = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        size = os.fstat(self._descriptor).st_size
        try:
            while unwritten:
                unwritten = unwritten[os.write(self._descriptor, unwritten) :]
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

    def _drop_partial_line(self) -> None:
        """A power loss may have left a partial line; the next line must not be appended to it."""
        size = os.fstat(self._descriptor).st_size
        complete = os.pread(self._descriptor, size, 0).rfind(b"\n") + 1
        if complete < size:
            os.ftruncate(self._descriptor, complete)


def _parse(line: bytes) -> dict[str, Any]:
    """{} for a line that a power loss has corrupted: the other lines are still valid."""
    try:
        parsed = json.loads(line)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _launch(line: dict[str, Any]) -> MachineRecord:
    names = ("id", "token", "body_sha256", "tags", "type", "market", "price", "metadata")
    clock = Clock(line["boot_id"], line["booted_at"])
    return MachineRecord(
        **{name: line[name] for name in names},
        clock=clock,
        launched_at=line["at"],
        last_event_at=line["at"],
        interface=Interface.parse(line["interface"]) if line.get("interface") else None,
    )


def _process(line: dict[str, Any]) -> Process:
    return Process(line["pid"], line["start_time"], line["boot_id"])

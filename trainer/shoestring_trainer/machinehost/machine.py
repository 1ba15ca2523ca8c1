# SPDX-License-Identifier: Apache-2.0
"""One machine as the host sees it: its journal, its JSON representation, and its end when its init has died."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoestring_trainer import processes
from shoestring_trainer.machinehost.init import START_TIMEOUT_S
from shoestring_trainer.machinehost.journal import (
    HEARTBEAT_S,
    JOURNAL_FILE,
    Journal,
    MachineRecord,
    classify_end,
    read_new_events,
)
from shoestring_trainer.machinehost.machine_folder import PREEMPT_FILE, STOP_FILE, machine_environment, read_request

log = logging.getLogger(__name__)

EXEC_TIMEOUT_S = 1.0  # a new init appears in the process table with its environment by then
INIT_TIMEOUT_S = START_TIMEOUT_S + 10.0  # and has locked the journal by then
KILL_TIMEOUT_S = 5.0


@dataclass
class Machine:
    """A machine's record, and the offset up to which its journal has been read."""

    folder: Path
    record: MachineRecord
    offset: int
    init_started: float = -math.inf  # monotonic; when this host last started an init for it
    scratch_deleted: bool = False
    folder_deleted: bool = False

    @classmethod
    def open(cls, folder: Path) -> Machine | None:
        """The machine of this folder; None if its journal contains no launch."""
        record, offset = read_new_events(folder / JOURNAL_FILE, None, 0)
        return None if record is None else cls(folder, record, offset)

    def refresh(self) -> MachineRecord:
        """Read what its journal has gained and return the record; of a deleted journal, as it was read last."""
        if self.record.ended_at is None:
            try:
                record, self.offset = read_new_events(self.folder / JOURNAL_FILE, self.record, self.offset)
            except FileNotFoundError:
                self.folder_deleted = True
                return self.record
            self.record = record or self.record
        return self.record

    def to_json(self) -> dict[str, Any]:
        record = self.record
        return {
            "id": record.id,
            "token": record.token,
            "tags": record.tags,
            "type": record.type,
            "market": record.market,
            "price": record.price,
            "state": record.state,
            "launched_at": record.launched_at,
            "started_at": record.started_at,
            "preempt_at": record.preempt_at,
            "ended_at": record.ended_at,
            "end_cause": record.end_cause,
            "exit_code": record.exit_code,
            "clock_shift": record.clock.shift() if record.ended_at is None else record.clock_shift,
            "metadata_url": record.metadata_url,
            "dir": str(self.folder),
            "journal": str(self.folder / JOURNAL_FILE),
            "init_pid": record.init and record.init.pid,
            "agent_pid": record.agent and record.agent.pid,
            "address": record.address,
        }

    def init_may_start(self) -> bool:
        """Whether an init that this host started may still lock the journal."""
        age_s = time.monotonic() - self.init_started
        return age_s < EXEC_TIMEOUT_S or (age_s < INIT_TIMEOUT_S and self._has_processes())

    def end_without_init(self, journal: Journal) -> None:
        """Kill the processes that a dead init left behind, and journal the end that it could not write.

        If a process was still alive, the machine lived until now. Otherwise it lived at most one heartbeat longer than
        the last line of its journal, however long no host was running.
        """
        was_alive = self._has_processes()
        if not processes.kill_all(self._processes, timeout_s=KILL_TIMEOUT_S):
            log.warning("%s: some processes can't be killed; retrying", self.record.id)
            return
        now, last = self.record.clock.now(), self.record.last_event_at
        at = now if was_alive else max(last, min(now, last + round(HEARTBEAT_S * 1e6)))
        noticed = self.record.notice_at is not None or read_request(self.folder, PREEMPT_FILE) is not None
        stopped = self.record.stop_requested_at is not None or read_request(self.folder, STOP_FILE) is not None
        cause = classify_end(noticed=noticed, stopped=stopped, exit_code=None)
        journal.append_end(cause, None, at, by="machinehost")

    def end_without_folder(self) -> None:
        """Kill its processes, as nobody can tell them anything any more; only this host knows of the end."""
        if not processes.kill_all(self._processes, timeout_s=KILL_TIMEOUT_S):
            log.warning("%s: some processes can't be killed; retrying", self.record.id)
            return
        noticed, stopped = self.record.notice_at is not None, self.record.stop_requested_at is not None
        cause = classify_end(noticed=noticed, stopped=stopped, exit_code=None)
        self.record = replace(self.record, ended_at=self.record.clock.now(), end_cause=cause)
        log.warning("%s ended: somebody deleted %s", self.record.id, self.folder)

    def _has_processes(self) -> bool:
        return processes.are_any_left(self._processes)

    def _processes(self) -> set[processes.Process]:
        return processes.find_by_environment(machine_environment(self.folder))

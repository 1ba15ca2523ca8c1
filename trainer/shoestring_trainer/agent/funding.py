# SPDX-License-Identifier: Apache-2.0
"""The funding lease: until when this machine is paid for. Kept on the disk and by the dead-man switch."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from shoestring_trainer import processes
from shoestring_trainer.agent.deadman import DeadManSwitch
from shoestring_trainer.agent.service_client import boottime

DEADMAN_RESERVE_S = 0.5
MIN_EXTENSION_S = 0.25  # less is the jitter of replies
MIN_MARGIN_S, MAX_MARGIN_S = 2.0, 60.0
SPARE_S = 10.0
"""For what is not measured: to tell the ranks, to commit, and an upload that is slower than the last one."""


class FundingLease:
    """`until` is a moment of `boottime`. Leases only grow."""

    def __init__(self, file: Path, deadman: DeadManSwitch) -> None:
        self.until = 0.0
        self._longest_s = 0.0
        self._file, self._deadman = file, deadman

    def extend(self, granted_at: float, lease_s: float) -> None:
        """The machine is paid for until `lease_s` after `granted_at`."""
        self._longest_s = max(self._longest_s, lease_s)
        self._set(granted_at + lease_s)

    def restore(self) -> None:
        """Take over the lease that an earlier agent of this boot was granted."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            saved = json.loads(self._file.read_text())
            if saved["boot"] == processes.current_boot_id():
                self._set(float(saved["until"]))

    @property
    def exit_deadline(self) -> float:
        """By then the machine's work is saved and its processes have ended."""
        return self.until - 2 * DEADMAN_RESERVE_S

    def is_ending(self, save_s: float = 0.0) -> bool:
        """Whether it is time to checkpoint and shut down, whether or not the service answers.

        save_s  what that takes, by the last checkpoint; 0: not known

        A third of the lease is kept for it at most: the service extends a lease when half of it is left.
        """
        margin_s = min(MAX_MARGIN_S, max(MIN_MARGIN_S, self._longest_s / 4))
        needed_s = min(save_s + SPARE_S, self._longest_s / 3) if save_s else 0.0
        return boottime() >= self.until - max(margin_s, needed_s)

    def _set(self, until: float) -> None:
        if until > self.until + MIN_EXTENSION_S:
            self.until = until
            self._deadman.set_deadline(until - DEADMAN_RESERVE_S)
            with suppress(OSError):
                self._file.write_text(json.dumps({"boot": processes.current_boot_id(), "until": until}))

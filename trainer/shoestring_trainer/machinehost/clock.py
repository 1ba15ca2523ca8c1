# SPDX-License-Identifier: Apache-2.0
"""A machine's clock: the wall clock when it was launched, carried on by a clock that is never set.

The time between two of its readings is the time that passed, however the computer's clock was set meanwhile.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from shoestring_trainer import processes


def wall_us() -> int:
    """The computer's clock, which may be set: µs since the epoch."""
    return time.time_ns() // 1000


def boottime() -> float:
    """Seconds since the computer booted, its suspensions included. Never goes back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Clock:
    """`booted_at`: the wall clock's time of the boot `boot_id`, as it was when the clock was tied (µs)."""

    boot_id: str
    booted_at: int

    @classmethod
    def tied_now(cls) -> Clock:
        return cls(processes.current_boot_id(), wall_us() - round(boottime() * 1e6))

    def now(self) -> int:
        """µs since the epoch. After another boot, where nothing of the machine runs any more: the wall clock."""
        return self.booted_at + round(boottime() * 1e6) if self._is_this_boot() else wall_us()

    def shift(self) -> int:
        """How far the computer's clock was set forward since (negative: back), in µs, to the second.

        0 after another boot.
        """
        return round((wall_us() - self.now()) / 1e6) * 1_000_000

    def boottime(self, at: int) -> float:
        """The `boottime` at which this clock shows `at`."""
        return (at - self.booted_at) / 1e6

    def _is_this_boot(self) -> bool:
        return self.boot_id == processes.current_boot_id()

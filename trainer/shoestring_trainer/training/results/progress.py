# SPDX-License-Identifier: Apache-2.0
"""Progress for people: a bar that moves at a terminal, a line every few seconds in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping

TERMINAL_EVERY_S, LOG_EVERY_S = 0.1, 2.0
BAR = 16
ERASE = "\r\033[K"


class Progress:
    """Prints to stdout. A line too soon after the last is dropped, unless something was measured: that stays."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._moving = sys.stdout.isatty()
        self._printed_at = 0.0
        self._began_at, self._began_step = time.monotonic(), -1

    def show(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Say how far training is after `step`."""
        now = time.monotonic()
        if self._began_step < 0:
            self._began_at, self._began_step = now, step
        measured = {name: value for name, value in values.items() if name.startswith("val/")}
        if measured and self._moving:
            self._print(ERASE + measured_line(epoch, values), "\n")
        if measured or now - self._printed_at >= (TERMINAL_EVERY_S if self._moving else LOG_EVERY_S):
            self._printed_at = now
            rate = (step - self._began_step) / max(now - self._began_at, 1e-9)
            if self._moving:
                width = shutil.get_terminal_size().columns - 1
                self._print(ERASE + bar_line(step, self._total, epoch, rate, values)[:width], "")
            else:
                self._print(log_line(step, self._total, rate, values), "\n")

    def finish(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Say how it ended."""
        if self._moving:
            self._print(ERASE + measured_line(epoch, values) + f"  after {step:,} steps", "\n")
        else:
            self._print(f"{measured_line(epoch, values)}  after {step} steps", "\n")

    def _print(self, line: str, end: str) -> None:
        print(line, end=end, flush=True)


def bar_line(step: int, total: int, epoch: float, rate: float, values: Mapping[str, float]) -> str:
    """The moving line: where the run is, how fast, how long still, and what was reported last."""
    filled = step * BAR // total
    left = f"{duration((total - step) / rate)} left" if rate > 0 else ""
    loss = f"loss {values['train/loss']:.4f}" if "train/loss" in values else ""
    return (
        f"epoch {epoch:5.2f} ▕{'█' * filled}{'·' * (BAR - filled)}▏{100 * step // total:3d} %  "
        f"{rate:.3g} steps/s  {left}  {loss}"
    )


def measured_line(epoch: float, values: Mapping[str, float]) -> str:
    """What an epoch came to."""
    scores = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if name.startswith("val/"))
    loss = f"  train/loss {values['train/loss']:.4f}" if "train/loss" in values else ""
    return f"epoch {epoch:5.2f}  {scores}{loss}"


def log_line(step: int, total: int, rate: float, values: Mapping[str, float]) -> str:
    """The same for a log that nobody looks at as it grows."""
    shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if not name.startswith("time/"))
    return f"step {step}/{total}  {rate:.3g}/s  {shown}"


def duration(seconds: float) -> str:
    """Seconds in the units that people would use: 42 s, 3:05, 2:10:00."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

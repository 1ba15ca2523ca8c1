# SPDX-License-Identifier: Apache-2.0
"""Progress for people: one line that moves at a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

TERMINAL_EVERY_S, LOG_EVERY_S = 0.1, 2.0


class Progress:
    """Prints to stdout; a line too soon after the last is dropped unless something was measured."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._moving = sys.stdout.isatty()
        self._printed_at = 0.0
        self._began_at, self._began_step = time.monotonic(), -1

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Say how far training is after `step`."""
        now = time.monotonic()
        if self._began_step < 0:
            self._began_at, self._began_step = now, step
        every = TERMINAL_EVERY_S if self._moving else LOG_EVERY_S
        if now - self._printed_at >= every or any(name.startswith("val/") for name in values):
            self._printed_at = now
            print(self._line(step, values, now), end="" if self._moving else "\n", flush=True)

    def finish(self, step: int, values: Mapping[str, float]) -> None:
        """Say how it ended."""
        print(self._line(step, values, time.monotonic()), flush=True)

    def _line(self, step: int, values: Mapping[str, float], now: float) -> str:
        rate = (step - self._began_step) / max(now - self._began_at, 1e-9) if self._began_step >= 0 else 0.0
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        line = f"step {step}/{self._total}  {rate:.0f}/s  {shown}"
        return f"\r\033[K{line}" if self._moving else line

# SPDX-License-Identifier: Apache-2.0
"""Progress for people: a progress bar at a terminal, a line every few seconds in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping

from shoestring_core.durations import format_duration
from shoestring_core.wording.units import counted

TERMINAL_EVERY_S, LOG_EVERY_S = 0.1, 2.0
BAR_WIDTH = 16
ERASE_LINE = "\r\033[K"


class ProgressPrinter:
    """Prints to stdout. A line too soon after the last is dropped, except those of evaluations."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._is_terminal = sys.stdout.isatty()
        self._printed_at = 0.0
        self._began_at, self._began_step = time.monotonic(), -1

    def show(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Print the progress after `step`."""
        now = time.monotonic()
        if self._began_step < 0:
            self._began_at, self._began_step = now, step
        evaluated = any(name.startswith("val/") for name in metrics)
        if evaluated and self._is_terminal:
            self._print(ERASE_LINE + metrics_line(epoch, metrics), "\n")
        if evaluated or now - self._printed_at >= (TERMINAL_EVERY_S if self._is_terminal else LOG_EVERY_S):
            self._printed_at = now
            steps_per_s = (step - self._began_step) / max(now - self._began_at, 1e-9)
            if self._is_terminal:
                width = shutil.get_terminal_size().columns - 1
                self._print(ERASE_LINE + bar_line(step, self._total_steps, epoch, steps_per_s, metrics)[:width], "")
            else:
                self._print(log_line(step, self._total_steps, steps_per_s, metrics), "\n")

    def finish(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Print the final metrics."""
        if self._is_terminal:
            self._print(ERASE_LINE + metrics_line(epoch, metrics) + f"  after {counted(step, 'step')}", "\n")
        else:
            self._print(f"{metrics_line(epoch, metrics)}  after {counted(step, 'step')}", "\n")

    def _print(self, line: str, end: str) -> None:
        print(line, end=end, flush=True)


def bar_line(step: int, total_steps: int, epoch: float, steps_per_s: float, metrics: Mapping[str, float]) -> str:
    """Return the progress bar: position, speed, time left, and the training loss."""
    filled = step * BAR_WIDTH // total_steps
    left = f"{format_duration((total_steps - step) / steps_per_s)} left" if steps_per_s > 0 else ""
    loss = f"loss {metrics['train/loss']:.4f}" if "train/loss" in metrics else ""
    return (
        f"epoch {epoch:5.2f} ▕{'█' * filled}{'·' * (BAR_WIDTH - filled)}▏{100 * step // total_steps:3d} %  "
        f"{steps_per_s:.3g} steps/s  {left}  {loss}"
    )


def metrics_line(epoch: float, metrics: Mapping[str, float]) -> str:
    """Return the line of an evaluation: its metrics and the training loss."""
    val = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name.startswith("val/"))
    loss = f"  train/loss {metrics['train/loss']:.4f}" if "train/loss" in metrics else ""
    return f"epoch {epoch:5.2f}  {val}{loss}"


def log_line(step: int, total_steps: int, steps_per_s: float, metrics: Mapping[str, float]) -> str:
    """Return the line of a log: position, speed and metrics."""
    values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if not name.startswith("time/"))
    return f"step {step}/{total_steps}  {steps_per_s:.3g}/s  {values}"

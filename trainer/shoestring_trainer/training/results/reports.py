# SPDX-License-Identifier: Apache-2.0
"""What rank 0 tells the agent: one JSON line per point or event, each whole when it is there to read."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

TOGETHER_S = 0.05
"""Lines of metrics that are told within this time are written at once. Between two steps the processor's caches are
full of the network, and writing takes ten times as long as in a loop by itself: 50 µs, and 3 ms may be a whole step."""


class Reports:
    """metrics.jsonl and events.jsonl of one run. Safe to use from the thread that writes checkpoints.

    lines    reported by this process
    go_on    keep what an earlier process of this run wrote in the same folder
    """

    def __init__(self, folder: Path, *, go_on: bool = False) -> None:
        mode = "a" if go_on else "w"
        self.lines = 0
        self._metrics = (folder / "metrics.jsonl").open(mode)
        self._events = (folder / "events.jsonl").open(mode, buffering=1)
        self._waiting: list[tuple[float, int, float, Mapping[str, float]]] = []
        self._flushed_at = -TOGETHER_S
        self._lock = threading.Lock()

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> bool:
        """One line for step `step` (steps done so far). Whether it is written: it may wait for the next, or `flush`."""
        with self._lock:
            self._waiting.append((time.time(), step, epoch, values))
        self.lines += 1
        if time.monotonic() - self._flushed_at < TOGETHER_S:
            return False
        self.flush()
        return True

    def event(self, name: str, **facts: Any) -> None:
        """One line for something that happened, after those of all metrics before it."""
        self.flush()
        with self._lock:
            self._events.write(json.dumps({"t": time.time(), "event": name, **facts}) + "\n")

    def flush(self) -> None:
        """Write the lines that wait."""
        with self._lock:
            self._metrics.write("".join([_line(*point) for point in self._waiting]))
            self._metrics.flush()
            self._waiting.clear()
            self._flushed_at = time.monotonic()


def _line(at: float, step: int, epoch: float, values: Mapping[str, float]) -> str:
    shown = ", ".join([f"{_quoted(name)}: {_number(float(value))}" for name, value in values.items()])
    return f'{{"t": {at!r}, "step": {step}, "epoch": {epoch:.6f}, "v": {{{shown}}}}}\n'


@cache
def _quoted(name: str) -> str:
    return json.dumps(name)


def _number(value: float) -> str:
    """JSON has no NaN and no infinities: they travel as strings."""
    if math.isfinite(value):
        return repr(value)
    return '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'

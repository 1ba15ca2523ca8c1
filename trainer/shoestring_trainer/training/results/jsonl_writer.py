# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl and events.jsonl, which the agent reads: one JSON line per step or event, each written as a whole."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from shoestring_core.json_floats import encode_float

FLUSH_INTERVAL_S = 0.05
"""Lines of metrics within this time are written at once. Between two steps the processor's caches are full of the
network, and writing takes ten times as long as in a loop by itself: 50 µs, and 3 ms may be a whole step."""


class JsonlWriter:
    """Writes metrics.jsonl and events.jsonl of one run. Safe to use from the thread that writes checkpoints.

    lines   lines of metrics by this process
    append  keep what an earlier process of this run wrote in the same folder
    """

    def __init__(self, folder: Path, *, append: bool = False) -> None:
        mode = "a" if append else "w"
        self.lines = 0
        self._metrics = (folder / "metrics.jsonl").open(mode)
        self._events = (folder / "events.jsonl").open(mode, buffering=1)
        self._buffer: list[tuple[float, int, float, Mapping[str, float]]] = []
        self._flushed_at = -FLUSH_INTERVAL_S
        self._lock = threading.Lock()

    def write_metrics(self, step: int, epoch: float, metrics: Mapping[str, float], *, at: float) -> bool:
        """Write one line for step `step`, completed at the time `at`.

        Returns False if it is buffered until the next, or `flush`.
        """
        with self._lock:
            self._buffer.append((at, step, epoch, metrics))
        self.lines += 1
        if time.monotonic() - self._flushed_at < FLUSH_INTERVAL_S:
            return False
        self.flush()
        return True

    def write_event(self, name: str, **data: Any) -> None:
        """Write one line for an event, after those of all metrics before it."""
        self.flush()
        with self._lock:
            self._events.write(json.dumps({"t": time.time(), "event": name, **data}) + "\n")

    def flush(self) -> None:
        """Write the buffered lines."""
        with self._lock:
            self._metrics.write("".join([_line(*point) for point in self._buffer]))
            self._metrics.flush()
            self._buffer.clear()
            self._flushed_at = time.monotonic()


def _line(timestamp: float, step: int, epoch: float, metrics: Mapping[str, float]) -> str:
    values = ", ".join([f"{_quoted(name)}: {_number(float(value))}" for name, value in metrics.items()])
    return f'{{"t": {timestamp!r}, "step": {step}, "epoch": {epoch:.6f}, "v": {{{values}}}}}\n'


@cache
def _quoted(name: str) -> str:
    return json.dumps(name)


def _number(value: float) -> str:
    return repr(value) if math.isfinite(value) else f'"{encode_float(value)}"'

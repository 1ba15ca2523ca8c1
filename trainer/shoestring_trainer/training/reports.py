# SPDX-License-Identifier: Apache-2.0
"""What rank 0 tells the agent: one JSON line per point or event, each readable the moment it is written."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Reports:
    """metrics.jsonl and events.jsonl of one run. Safe to use from the thread that writes checkpoints.

    lines    written by this process
    go_on    keep what an earlier process of this run wrote in the same folder
    """

    def __init__(self, folder: Path, *, go_on: bool = False) -> None:
        mode = "a" if go_on else "w"
        self.lines = 0
        self._metrics = (folder / "metrics.jsonl").open(mode, buffering=1)
        self._events = (folder / "events.jsonl").open(mode, buffering=1)
        self._lock = threading.Lock()

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """One line for step `step` (steps done so far)."""
        shown = {name: _number(value) for name, value in values.items()}
        self._metrics.write(json.dumps({"t": time.time(), "step": step, "epoch": round(epoch, 6), "v": shown}) + "\n")
        self.lines += 1

    def event(self, name: str, **facts: Any) -> None:
        """One line for something that happened."""
        with self._lock:
            self._events.write(json.dumps({"t": time.time(), "event": name, **facts}) + "\n")


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinities: they travel as strings."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"

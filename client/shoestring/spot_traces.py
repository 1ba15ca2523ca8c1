# SPDX-License-Identifier: Apache-2.0
"""Recorded availability of spot machines, in the format of skypilot-org/spot-traces: a JSON file per zone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shoestring_core.regular_files import read_regular_text

SUFFIX = ".json"


class SpotTraceError(Exception):
    """A folder or file of traces can't be used; the message says which, and what it should be."""


@dataclass(frozen=True)
class SpotTrace:
    """`available[i]` is 1 if a machine could be had from `i * interval_s` on, else 0."""

    name: str
    interval_s: float
    available: bytes

    @property
    def zone(self) -> str:
        """us-east-1a of us-east-1a_v100_1."""
        return self.name.partition("_")[0]


def read_traces(folder: Path) -> list[SpotTrace]:
    """All traces of a folder, by name. Raises SpotTraceError."""
    if not folder.is_dir():
        raise SpotTraceError(f"There is no folder {folder}. --traces takes a folder of *{SUFFIX} files.")
    files = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX and path.is_file())
    if not files:
        raise SpotTraceError(
            f"{folder} has no *{SUFFIX} files. Each should be {{'metadata': {{'gap_seconds': 195}}, …}}."
        )
    return [_read(path) for path in files]


def select_zones(traces: Sequence[SpotTrace], zones: Sequence[str]) -> list[SpotTrace]:
    """The traces of these zones, named by zone or by file, in that order. Raises SpotTraceError."""
    found = []
    for zone in zones:
        matches = [trace for trace in traces if zone in (trace.name, trace.zone)]
        if len(matches) != 1:
            problem = "is ambiguous" if matches else "is not among the traces"
            raise SpotTraceError(f"Zone {zone} {problem}. There are: {', '.join(trace.name for trace in traces)}.")
        found += matches
    if len({trace.name for trace in found}) < len(found):
        raise SpotTraceError("--zones names a zone twice.")
    if len({trace.interval_s for trace in found}) > 1:
        raise SpotTraceError("These zones were recorded at different intervals, so they can't be combined.")
    return found


def _read(path: Path) -> SpotTrace:
    try:
        tree = json.loads(read_regular_text(path))
        interval, series = tree["metadata"]["gap_seconds"], tree["data"]
    except (ValueError, KeyError, TypeError, RecursionError) as damage:
        raise SpotTraceError(f"{path} is not a trace ({type(damage).__name__}: {damage}).") from damage
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not 0 < interval < math.inf:
        raise SpotTraceError(f"{path}: metadata.gap_seconds is {interval!r}, where seconds above 0 are needed.")
    if not isinstance(series, list) or not series or not all(value in (0, 1) for value in series):
        raise SpotTraceError(f"{path}: data is not a list of 0 and 1.")
    return SpotTrace(path.stem, float(interval), bytes(int(value) for value in series))

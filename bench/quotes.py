# SPDX-License-Identifier: Apache-2.0
"""How often the bands of quotes hold on recorded spot availability, beside bands of a fixed factor.

`SPOT_TRACES=FOLDER python -m bench quotes`

Every other zone by name, from the first, was used to set the constants of `decide/predictions.py`; the rest was not. A
run starts at a random moment at which its zone has machines, waits while it has none, and pays boot and restart of 12
minutes. Its quote knows what the zone did before, as a service that always rents a machine there would.
"""

from __future__ import annotations

import math
import os
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from shoestring.spot_traces import SpotTrace, read_traces
from shoestring_core.decide.predictions import Band, RunForecast, SpotHistory, predict

RUNS = 60
"""By zone."""

WORK_H = (2, 4, 8, 16, 32)
RESTART_S = 720.0
SLACK = 1.001
"""The work is exactly what was measured, so quantiles of the draws are as near to each other as rounding errors."""


@dataclass(frozen=True)
class Quoted:
    work_s: float
    band: Band
    actual: float

    @property
    def held(self) -> bool:
        return self.band.low / SLACK <= self.actual <= self.band.high * SLACK


def main() -> list[str]:
    folder = os.environ.get("SPOT_TRACES")
    if not folder:
        return ["not run: SPOT_TRACES names no folder of traces"]
    traces = read_traces(Path(folder))
    lines = [
        f"runs of {', '.join(map(str, WORK_H))} h, {RUNS} in each zone; width: high / low, geometric mean",
        "| zones | what | held | width | fixed factor of the expected, as often | of the work, as often |",
        "|---|---|---|---|---|---|",
    ]
    for name, chosen in (("set on", traces[0::2]), ("held out", traces[1::2])):
        draw = random.Random(1)
        runs = [pair for trace in chosen for pair in _runs(trace, draw)]
        zones = f"{name}: {', '.join(trace.zone for trace in chosen)}"
        lines += [_line(zones, "time", [time for time, _ in runs]), _line(zones, "cost", [paid for _, paid in runs])]
    return lines


def _line(zones: str, what: str, quotes: Sequence[Quoted]) -> str:
    held = statistics.fmean(one.held for one in quotes)
    width = math.exp(statistics.fmean(math.log(one.band.high / one.band.low) for one in quotes))
    fixed = _fixed_width([one.actual / one.band.expected for one in quotes], held)
    of_work = _fixed_width([one.actual / one.work_s for one in quotes], held)
    return f"| {zones} | {what} | {100 * held:.1f} % | {width:.3f} | {fixed:.3f} | {of_work:.3f} |"


def _fixed_width(ratios: Sequence[float], held: float) -> float:
    """The narrowest band of fixed factors that holds as often, chosen on the very runs that it is judged by."""
    ordered, count = sorted(ratios), math.ceil(held * len(ratios))
    return min(ordered[i + count - 1] / ordered[i] for i in range(len(ordered) - count + 1))


def _runs(trace: SpotTrace, draw: random.Random) -> Iterator[tuple[Quoted, Quoted]]:
    available, gap_s = trace.available, trace.interval_s
    made = 0
    while made < RUNS:
        work_s = draw.choice(WORK_H) * 3600.0
        start = draw.randrange(len(available) // 6, len(available) - round(work_s / gap_s))
        if not available[start] or (actual := _run(available, gap_s, start, work_s)) is None:
            continue  # one that the recording is too short for says nothing
        spot = _history(available, gap_s, start)
        bands = predict(RunForecast(work_s, RESTART_S, RESTART_S, 0.0, 1, (0.0,), 1e-6, spot))
        time_s, paid_s = actual
        yield Quoted(work_s, bands.time_s, time_s), Quoted(work_s, bands.paid_s, paid_s)
        made += 1


def _history(available: bytes, gap_s: float, end: int) -> SpotHistory:
    pairs = list(pairwise(available[:end]))
    return SpotHistory(
        up_s=gap_s * sum(before for before, _ in pairs),
        losses=sum(before and not after for before, after in pairs),
        outages=sum(after and not before for before, after in pairs),
        outage_s=gap_s * sum(not before for before, _ in pairs),
    )


def _run(available: bytes, gap_s: float, start: int, work_s: float) -> tuple[float, float] | None:
    """Time from the start to the end, and that in which a machine ran; None: the recording ends before."""
    time_s = paid_s = 0.0
    setup_s = RESTART_S
    for up in available[start:]:
        if not up:
            time_s, setup_s = time_s + gap_s, RESTART_S
            continue
        used_s = min(gap_s, setup_s + work_s)
        work_s -= max(0.0, used_s - setup_s)
        setup_s = max(0.0, setup_s - used_s)
        time_s, paid_s = time_s + used_s, paid_s + used_s
        if work_s <= 1e-9:
            return time_s, paid_s
    return None

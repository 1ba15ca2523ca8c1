# SPDX-License-Identifier: Apache-2.0
"""What the machine's GPUs and processor use, in joules, where they say it; nothing where they don't.

GPUs: NVML's counter of total energy (Volta and later); without it their power, summed over time. Processor: RAPL's
counters of whole packages below /sys/class/powercap, which Linux lets only root read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pynvml

log = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
UNREADABLE = (OSError, ValueError, pynvml.NVMLError)

Meter = Callable[[], float]
"""Joules since its first call. Raises one of UNREADABLE."""


class Energy:
    """All meters of this machine. Each begins at 0 with the first reading."""

    def __init__(
        self, gpus: Sequence[object], powercap: Path = POWERCAP, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._meters = {f"system/gpu{number}/energy_joules": _gpu_meter(gpu, clock) for number, gpu in enumerate(gpus)}
        packages = [meter for zone in sorted(powercap.glob("intel-rapl:*")) if (meter := _package_meter(zone))]
        if packages:
            self._meters["system/cpu_energy_joules"] = lambda: sum(meter() for meter in packages)

    def read(self) -> dict[str, float]:
        """Metric name to joules. A meter that fails is not asked again."""
        values = {}
        for name, meter in list(self._meters.items()):
            try:
                values[name] = meter()
            except UNREADABLE as error:
                log.info("%s can't be measured: %s", name, error)
                del self._meters[name]
        return values


def _gpu_meter(gpu: object, clock: Callable[[], float]) -> Meter:
    try:
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except pynvml.NVMLError:
        return _summed(lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000, clock)
    return _since_first(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000)


def _package_meter(zone: Path) -> Meter | None:
    """None if the zone is only a part of a package, or can't be read."""
    try:
        if not (zone / "name").read_text().startswith("package"):
            return None
        range_j = int((zone / "max_energy_range_uj").read_text()) / 1e6
        counter = zone / "energy_uj"
        counter.read_text()
    except UNREADABLE as error:
        log.info("the processor's energy can't be measured: %s", error)
        return None
    return _since_first(lambda: int(counter.read_text()) / 1e6, range_j)


def _since_first(read: Callable[[], float], wraps_at: float = 0.0) -> Meter:
    """What a counter has risen by; one that wraps is read often enough to wrap once at most between two readings."""
    last: float | None = None
    total = 0.0

    def meter() -> float:
        nonlocal last, total
        now = read()
        rise = 0.0 if last is None else now - last
        total += rise % wraps_at if wraps_at and rise < 0 else max(0.0, rise)
        last = now
        return total

    return meter


def _summed(watts: Callable[[], float], clock: Callable[[], float]) -> Meter:
    """Power over time, as if it changed evenly between two readings."""
    last: tuple[float, float] | None = None
    total = 0.0

    def meter() -> float:
        nonlocal last, total
        now = (clock(), watts())
        if last is not None:
            total += (now[0] - last[0]) * (now[1] + last[1]) / 2
        last = now
        return total

    return meter

# SPDX-License-Identifier: Apache-2.0
"""The energy that the machine's GPUs and CPUs use, in joules, as far as it can be measured.

GPUs: NVML's counter of total energy (Volta and later); without it the integral of their power. CPUs: RAPL's counters of
whole packages in /sys/class/powercap, which Linux lets only root read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pynvml

log = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
READ_ERRORS = (OSError, ValueError, pynvml.NVMLError)

Meter = Callable[[], float]
"""Returns the joules since its first call. Raises one of READ_ERRORS."""


class EnergyMeters:
    """All energy meters of this machine. Each starts at 0 with its first reading."""

    def __init__(
        self, gpus: Sequence[object], powercap: Path = POWERCAP, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._meters = {f"system/gpu{number}/energy_joules": _gpu_meter(gpu, clock) for number, gpu in enumerate(gpus)}
        packages = [meter for zone in sorted(powercap.glob("intel-rapl:*")) if (meter := _package_meter(zone))]
        if packages:
            self._meters["system/cpu_energy_joules"] = lambda: sum(meter() for meter in packages)

    def read(self) -> dict[str, float]:
        """Metric name to joules. A meter that fails is not read again."""
        values = {}
        for name, meter in list(self._meters.items()):
            try:
                values[name] = meter()
            except READ_ERRORS as error:
                log.info("%s can't be measured: %s", name, error)
                del self._meters[name]
        return values


def _gpu_meter(gpu: object, clock: Callable[[], float]) -> Meter:
    try:
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except pynvml.NVMLError:
        return _power_meter(lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000, clock)
    return _counter_meter(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000)


def _package_meter(zone: Path) -> Meter | None:
    """None if the zone is only part of a package, or can't be read."""
    try:
        if not (zone / "name").read_text().startswith("package"):
            return None
        range_j = int((zone / "max_energy_range_uj").read_text()) / 1e6
        counter = zone / "energy_uj"
        counter.read_text()
    except READ_ERRORS as error:
        log.info("the CPU's energy can't be measured: %s", error)
        return None
    return _counter_meter(lambda: int(counter.read_text()) / 1e6, range_j)


def _counter_meter(read: Callable[[], float], wraps_at: float = 0.0) -> Meter:
    """The increase of a counter. A counter that wraps must be read at least once per wrap."""
    last: float | None = None
    total = 0.0

    def meter() -> float:
        nonlocal last, total
        now = read()
        increase = 0.0 if last is None else now - last
        total += increase % wraps_at if wraps_at and increase < 0 else max(0.0, increase)
        last = now
        return total

    return meter


def _power_meter(watts: Callable[[], float], clock: Callable[[], float]) -> Meter:
    """The integral of power over time, linear between two readings (trapezoidal rule)."""
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

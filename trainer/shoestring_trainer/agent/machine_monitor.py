# SPDX-License-Identifier: Apache-2.0
"""How busy the machine is: processor, memory, disk, and the GPUs where NVML finds some; and what energy it uses."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import psutil
import pynvml
from shoestring_core.wire import Hardware

from shoestring_trainer.agent.energy import EnergyMeters

log = logging.getLogger(__name__)


class MachineMonitor:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._gpus = _find_gpus()
        self._energy = EnergyMeters(self._gpus)
        psutil.cpu_percent(None)  # the first call only starts the measurement

    def hardware(self) -> Hardware:
        return Hardware(
            cpus=os.cpu_count() or 0,
            memory_bytes=psutil.virtual_memory().total,
            disk_bytes=psutil.disk_usage(str(self._folder)).total,
            gpus=[_text(pynvml.nvmlDeviceGetName(gpu)) for gpu in self._gpus],
        )

    def sample(self) -> dict[str, float]:
        """Metric name to value. `cpu_percent` is of all cores, since the last sample; GPU power is in watts; energy in
        joules since the first sample."""
        values = {
            "system/cpu_percent": psutil.cpu_percent(None),
            "system/memory_bytes": float(psutil.virtual_memory().used),
            "system/disk_used_bytes": float(psutil.disk_usage(str(self._folder)).used),
        }
        for number, gpu in enumerate(self._gpus):
            try:
                values |= {f"system/gpu{number}/{name}": value for name, value in _sample_gpu(gpu).items()}
            except pynvml.NVMLError as error:
                log.warning("GPU %d no longer reports metrics: %s", number, error)
                self._gpus = []
                break
        return values | self._energy.read()


def _sample_gpu(gpu: object) -> dict[str, float]:
    return {
        "utilization_percent": float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
        "memory_bytes": float(pynvml.nvmlDeviceGetMemoryInfo(gpu).used),
        "power_watts": pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    }


def _find_gpus() -> list[object]:
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name

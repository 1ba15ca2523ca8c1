# SPDX-License-Identifier: Apache-2.0
"""Energy is what devices measure; a device that can't be read is left out, not estimated."""

from __future__ import annotations

from pathlib import Path

import pynvml
import pytest
from shoestring_trainer.agent.energy import EnergyMeters
from shoestring_trainer.agent.machine_monitor import MachineMonitor

CPU = "system/cpu_energy_joules"


def zone(folder: Path, name: str, micro_joules: int | None, *, number: str = "0", wraps_at: int = 1_000_000) -> Path:
    """A RAPL zone as in the kernel's sysfs."""
    path = folder / f"intel-rapl:{number}"
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    if micro_joules is not None:
        (path / "energy_uj").write_text(f"{micro_joules}\n")
    return path / "energy_uj"


def test_packages_are_summed_from_the_first_reading_and_counters_may_wrap(tmp_path: Path):
    first = zone(tmp_path, "package-0", 900_000)
    second = zone(tmp_path, "package-1", 5, number="1")
    zone(tmp_path, "core", 7_000_000, number="0:0")  # already counted in its package
    energy = EnergyMeters([], tmp_path)
    assert energy.read() == {CPU: 0.0}
    first.write_text("100000\n")
    second.write_text("500005\n")
    assert energy.read()[CPU] == pytest.approx(0.7)
    first.write_text("150000\n")
    assert energy.read()[CPU] == pytest.approx(0.75)


@pytest.mark.parametrize("what", ["no folder", "no counter", "not a number"])
def test_a_cpu_that_cannot_be_read_is_left_out(tmp_path: Path, what: str):
    if what != "no folder":
        counter = zone(tmp_path, "package-0", None)
        if what == "not a number":
            counter.write_text("?")
    energy = EnergyMeters([], tmp_path)
    assert energy.read() == {}


def test_a_meter_that_fails_is_not_read_again(tmp_path: Path):
    counter = zone(tmp_path, "package-0", 1)
    energy = EnergyMeters([], tmp_path)
    assert energy.read() == {CPU: 0.0}
    counter.unlink()
    assert energy.read() == {}
    counter.write_text("9")
    assert energy.read() == {}


class Nvml:
    """NVML's two energy functions, for one device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, counts: bool) -> None:
        self.millijoules, self.milliwatts, self.gone = 5_000_000, 200_000, False
        monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", self.energy if counts else self.refuse)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", self.power)

    def energy(self, _: object) -> int:
        return self.refuse() if self.gone else self.millijoules

    def power(self, _: object) -> int:
        return self.refuse() if self.gone else self.milliwatts

    def refuse(self, *_: object) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def test_a_gpus_counter_is_relative_to_its_first_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nvml = Nvml(monkeypatch, counts=True)
    energy = EnergyMeters(["gpu"], tmp_path)
    assert energy.read() == {"system/gpu0/energy_joules": 0.0}
    nvml.millijoules += 1_500
    assert energy.read() == {"system/gpu0/energy_joules": 1.5}
    nvml.gone = True
    assert energy.read() == {}


def test_the_energy_of_a_gpu_without_a_counter_is_the_integral_of_its_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    nvml, now = Nvml(monkeypatch, counts=False), [10.0]
    energy = EnergyMeters(["gpu"], tmp_path, clock=lambda: now[0])
    assert energy.read() == {"system/gpu0/energy_joules": 0.0}
    now[0], nvml.milliwatts = 15.0, 300_000
    assert energy.read() == {"system/gpu0/energy_joules": 5 * 250.0}


def test_a_sample_contains_what_can_be_measured(tmp_path: Path):
    sample = MachineMonitor(tmp_path).sample()
    assert sample["system/memory_bytes"] > 0
    assert all(value >= 0 for name, value in sample.items() if name.endswith("energy_joules"))

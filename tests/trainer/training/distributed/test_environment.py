# SPDX-License-Identifier: Apache-2.0
"""When a process takes itself for a rank of torchrun's."""

from __future__ import annotations

import pytest
import torch
from shoestring_core.task import Device
from shoestring_trainer.training.distributed.context import find_place
from shoestring_trainer.training.errors import MissingGpuError, classify_error


def test_a_leftover_world_size_without_a_rank_is_said_and_ignored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    context = find_place()
    assert (context.rank, context.world_size, context.local_rank) == (0, 1, 0)
    assert "WORLD_SIZE is set without RANK" in capsys.readouterr().err


@pytest.mark.parametrize(("cuda_devices", "local_rank", "device"), [(0, 0, "cpu"), (4, 0, "cpu"), (0, 0, "auto")])
def test_a_rank_trains_on_the_cpu_where_its_machine_has_no_gpu_or_only_simulates_them(
    monkeypatch: pytest.MonkeyPatch, cuda_devices: int, local_rank: int, device: Device
) -> None:
    has_cuda(monkeypatch, cuda_devices, local_rank)
    assert find_place(device).device == torch.device("cpu")


@pytest.mark.parametrize(("cuda_devices", "local_rank"), [(0, 0), (1, 1), (4, 7)])
def test_a_rank_without_the_gpu_that_its_machine_is_paid_for_fails_as_broken_hardware(
    monkeypatch: pytest.MonkeyPatch, cuda_devices: int, local_rank: int
) -> None:
    has_cuda(monkeypatch, cuda_devices, local_rank)
    with pytest.raises(
        MissingGpuError, match=f"finds no GPU for rank {local_rank} .* it finds {cuda_devices} in all"
    ) as error:
        find_place("cuda")
    assert classify_error(error.value, has_peers=True) == "hardware"


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    has_cuda(monkeypatch, 4, 3)
    for device in ("auto", "cuda"):
        assert find_place(device).device == torch.device("cuda", 3)


def has_cuda(monkeypatch: pytest.MonkeyPatch, devices: int, local_rank: int) -> None:
    """PyTorch finds so many CUDA devices; this process is the rank `local_rank` of its machine."""
    for name, value in {"RANK": local_rank, "WORLD_SIZE": 8, "LOCAL_RANK": local_rank}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)

# SPDX-License-Identifier: Apache-2.0
"""A training step never waits for the device, and uploads nothing by the way: shown without a GPU, on fake tensors.

Fake tensors have no values, so asking for one fails; a function mode also sees what asks for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.step import Trainer
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode

from tests.trainer.training.first_phase import RECIPES, first_phase

WAITS = {
    "item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu", "nonzero", "masked_select",
    "unique", "is_nonzero", "equal",
}  # fmt: skip
TORCH = Path(torch.__file__).parent
UPLOADS = {"tensor", "as_tensor", "new_tensor", "from_numpy", "pin_memory", "cuda"}


class Watch(TorchFunctionMode):
    """Records what a step asks of torch that makes the host wait, or copies from the host outside `upload`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in WAITS | UPLOADS or is_copy_to_a_device(name, args, kwargs or {}):
            self.seen.append(name)
        return func(*args, **kwargs or {})


def is_copy_to_a_device(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call names a device to copy to, or has an index with numbers, which is copied to the device.

    Not those of PyTorch's optimizers and GradScaler, which copy what is on one device already.
    """
    if name == "__getitem__":
        return any(isinstance(part, list) for part in (args[1] if isinstance(args[1], tuple) else [args[1]]))
    names_a_device = any(isinstance(value, torch.device | str) for value in (*args, *kwargs.values()))
    return name == "to" and names_a_device and TORCH not in Path(sys._getframe(2).f_code.co_filename).parents


def halve(model: nn.Module) -> nn.Module:
    """As `Module.half`, which can't convert fake tensors: with new parameters."""
    for module in model.modules():
        if not isinstance(module, nn.BatchNorm2d):
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.detach().half(), parameter.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.half())
    return model


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode:
        yield mode


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *product(RECIPES, [Precision.FP16, Precision.BF16]),
        ("cifar10/airbench94", Precision.FP16_TRUE),
        ("cifar10/airbench94-muon", Precision.FP16_TRUE),
    ],
)
def test_a_step_waits_for_nothing_and_uploads_nothing(
    fake: FakeTensorMode, name: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nn.Module, "half", halve)
    monkeypatch.setattr(nn.BatchNorm2d, "float", lambda norm: norm)
    setup = first_phase(name, precision, torch.device("cpu"))
    trainer, schedule, sampler = Trainer(setup, frozenset(), lambda: True), setup.schedule, setup.build_sampler()
    with Watch() as watch:
        for step in (1, 2):
            samples = sampler.batch(schedule.samples_before(step), schedule.phases[0].batch_size)
            queued = trainer.train_step(samples, schedule.phases[0].batch_size, schedule.step_hyperparams(step))
            if trainer.average:
                trainer.average.update(5, schedule.total_steps)
        assert watch.seen == []
        with pytest.raises(DataDependentOutputException):
            queued.numbers.read()
    assert watch.seen[0] in WAITS


def test_the_watch_sees_the_upload_of_an_index(fake: FakeTensorMode):
    with Watch() as watch:
        torch.zeros(2, 4)[:, [1, 3]]
    assert watch.seen == ["__getitem__"]


@pytest.mark.parametrize("copy", [{"device": "cpu"}, {"device": torch.device("cpu"), "non_blocking": True}])
def test_the_watch_sees_a_copy_to_a_device(copy: dict[str, Any]):
    with Watch() as watch:
        torch.zeros(1).to(torch.float16).to(**copy)
    assert watch.seen == ["to"]


@pytest.mark.parametrize("wait", ["item", "tolist", "__bool__", "__float__"])
def test_the_watch_sees_a_wait(fake: FakeTensorMode, wait: str):
    with Watch() as watch, pytest.raises(DataDependentOutputException):
        getattr(torch.zeros(1), wait)()
    assert set(watch.seen) & WAITS

# SPDX-License-Identifier: Apache-2.0
"""A training step never waits for the device, and uploads nothing by the way: shown without a GPU, on fake tensors.

Fake tensors have no values, so asking for one fails; a function mode also sees what asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from shoestring_trainer.training.data.batch_loader import BatchLoader
from shoestring_trainer.training.data.dataset import ImageDataset, LabeledImages
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.models.registry import build_model
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.setup import Setup
from shoestring_trainer.training.step import Trainer
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode

from tests.trainer.training.optim.test_recipe_schedules import choose

WAITS = {
    "item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu", "nonzero", "masked_select",
    "unique", "is_nonzero", "equal",
}  # fmt: skip
UPLOADS = {"tensor", "as_tensor", "new_tensor", "from_numpy", "pin_memory", "cuda"}
CPU = torch.device("cpu")


class Watch(TorchFunctionMode):
    """Records what a step asks of torch that makes the host wait, or copies from the host outside `upload`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(func, "__name__", "")) in WAITS | UPLOADS:
            self.seen.append(name)
        return func(*args, **kwargs or {})


def fake_setup(name: str, precision: Precision) -> Setup:
    """Return the recipe's run on 64 images, in its first phase; for use in a FakeTensorMode."""
    recipe, settings = choose(name, batch_size=32)
    side, classes = (96, 1000) if name.startswith("imagenet/") else (32, 10)
    images = LabeledImages(
        torch.zeros(64, 3, side, side, dtype=torch.uint8), torch.zeros(64, dtype=torch.long), torch.ones(64)
    )
    mean, std = [0.5] * 3, [0.2] * 3
    data = ImageDataset(images, images, [str(number) for number in range(classes)], 255.0, mean, std, {})
    loader, schedule = BatchLoader(lambda *_: data, settings, CPU), HyperparamSchedule.from_settings(settings, 64)
    model = build_model(**recipe.model, settings=settings, classes=classes, mean=mean, std=std)
    loader.start_phase(schedule.phases[0], ())
    return Setup(DistributedContext(0, 1, 0, CPU), recipe, {}, settings, 0, precision, loader, schedule, model)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode:
        yield mode


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
@pytest.mark.parametrize(
    "name", ["cifar10/airbench94", "cifar10/airbench94-muon", "cifar10/page-resnet9", "imagenet/imagenet18"]
)
def test_a_step_waits_for_nothing_and_uploads_nothing(fake: FakeTensorMode, name: str, precision: Precision):
    setup = fake_setup(name, precision)
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


@pytest.mark.parametrize("wait", ["item", "tolist", "__bool__", "__float__"])
def test_the_watch_sees_a_wait(fake: FakeTensorMode, wait: str):
    with Watch() as watch, pytest.raises(DataDependentOutputException):
        getattr(torch.zeros(1), wait)()
    assert set(watch.seen) & WAITS

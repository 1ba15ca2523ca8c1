# SPDX-License-Identifier: Apache-2.0
"""The first phase of a recipe on a few images of zeros, for tests and benchmarks of single training steps."""

from __future__ import annotations

from typing import Any

import torch
from shoestring_trainer.training.data.batch_loader import BatchLoader
from shoestring_trainer.training.data.dataset import ImageDataset, LabeledImages
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.models.registry import build_model
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.setup import Setup

from tests.trainer.training.optim.test_recipe_schedules import choose

RECIPES = ["cifar10/airbench94", "cifar10/airbench94-muon", "cifar10/page-resnet9", "imagenet/imagenet18"]
"""Recipes whose steps are looked at: each optimizer and network that a published time is claimed with."""


def first_phase(name: str, precision: Precision, device: torch.device, **params: Any) -> Setup:
    """Return the recipe's run on two batches of images, in its first phase, on one process."""
    recipe, settings = choose(name, **{"batch_size": 32, **params})
    count = 2 * settings.batch_size
    side, classes = (96, 1000) if name.startswith("imagenet/") else (32, 10)
    images = LabeledImages(
        torch.zeros(count, 3, side, side, dtype=torch.uint8), torch.zeros(count, dtype=torch.long), torch.ones(count)
    )
    mean, std = [0.5] * 3, [0.2] * 3
    data = ImageDataset(images, images, [str(number) for number in range(classes)], 255.0, mean, std, {})
    loader, schedule = BatchLoader(lambda *_: data, settings, device), HyperparamSchedule.from_settings(settings, count)
    model = build_model(**recipe.model, settings=settings, classes=classes, mean=mean, std=std)
    if device.type == "cuda":  # fake tensors can't be moved
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader.start_phase(schedule.phases[0], ())
    return Setup(DistributedContext(0, 1, 0, device), recipe, {}, settings, 0, precision, loader, schedule, model)

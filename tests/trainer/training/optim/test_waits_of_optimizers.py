# SPDX-License-Identifier: Apache-2.0
"""No optimizer waits for the device or uploads anything, in any precision: shown on fake tensors, see test_waits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from shoestring_trainer.training.hyperparam_schedule import StepHyperparams
from shoestring_trainer.training.models.registry import build_model
from shoestring_trainer.training.optim.optimizers import OPTIMIZERS, build_optimizer, set_hyperparams
from shoestring_trainer.training.optim.preconditioners import KFAC
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.settings import Settings
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.trainer.training.test_waits import Watch


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("name", [*OPTIMIZERS, "kfac sampled"])
def test_no_optimizer_waits_or_uploads(name: str, precision: Precision):
    """In a step that updates preconditioners, and in one that does not."""
    optimizer_name, _, fisher = name.partition(" ")
    settings = Settings(width=4, optimizer=optimizer_name, kfac_fisher=fisher or "empirical", weight_decay=1e-3)
    with FakeTensorMode():
        model = build_model("convnet", settings, classes=10, mean=[0.5], std=[0.2])
        images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
        optimizer = build_optimizer(model, settings)
        scaler = torch.amp.GradScaler("cpu", enabled=precision is Precision.FP16)
        scaler.scale(torch.ones(()))  # its scale is on the device from now on
        with Watch() as watch:
            for step in (0, 1):
                set_hyperparams(optimizer, StepHyperparams(1.0, 1.0, 0.9, step))
                with precision.autocast(torch.device("cpu")):
                    logits = model(images).float()
                if isinstance(optimizer, KFAC):
                    optimizer.add_sampled_gradients(logits, seed=0)
                scaler.scale(F.cross_entropy(logits, labels)).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        assert watch.seen == []

# SPDX-License-Identifier: Apache-2.0
"""The optimizer: SGD with Nesterov momentum, and no decay where decay does harm."""

from __future__ import annotations

import torch
from torch import nn

from shoestring_trainer.training.settings import Settings


def build_optimizer(model: nn.Module, settings: Settings, *, scaled: bool) -> torch.optim.Optimizer:
    """SGD over the model's parameters; weights of norms and all biases (whatever has one axis) do not decay.

    scaled  gradients come from a GradScaler: the fused step would count a skipped first step as taken
    """
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        fused=not scaled,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the learning rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = rate

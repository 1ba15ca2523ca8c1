# SPDX-License-Identifier: Apache-2.0
"""A rank that checks, in each way for gradients to travel, that they become the mean over the gang."""

from __future__ import annotations

import os

import torch
from shoestring_trainer.training.distributed.context import join_gang
from shoestring_trainer.training.settings import Settings
from torch import nn

gang = join_gang()
for half in (False, True):
    for static in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1000, 50), nn.Linear(50, 2))
        settings = Settings(batch_size=gang.world, half_gradients=half, static_graph=static, bucket_mb=0.1)
        spread = gang.distribute(model, settings)
        inputs_RF = torch.rand(gang.world, 1000)
        for _ in range(2):
            model.zero_grad()
            spread(inputs_RF[gang.rank : gang.rank + 1]).sum().backward()
        ours = [parameter.grad for parameter in model.parameters()]
        mean = torch.autograd.grad(model(inputs_RF).sum() / gang.world, list(model.parameters()))
        for one, other in zip(ours, mean, strict=True):
            assert one is not None
            assert torch.allclose(one, other, atol=1e-2 if half else 1e-6), (half, static)
gang.leave()
os._exit(0)

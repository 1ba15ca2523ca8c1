# SPDX-License-Identifier: Apache-2.0
"""A rank that checks, in each way for gradients to travel, that they become the mean over the distributed."""

from __future__ import annotations

import os

import torch
from shoestring_trainer.training.distributed.context import find_place, join_process_group
from shoestring_trainer.training.settings import Settings
from torch import nn

distributed = find_place()
join_process_group(distributed)
for half in (False, True):
    for static in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1000, 50), nn.Linear(50, 2))
        settings = Settings(
            batch_size=distributed.world_size, fp16_allreduce=half, static_graph=static, bucket_cap_mb=0.1
        )
        ddp = distributed.wrap_ddp(model, settings)
        inputs_RF = torch.rand(distributed.world_size, 1000)
        for _ in range(2):
            model.zero_grad()
            ddp(inputs_RF[distributed.rank : distributed.rank + 1]).sum().backward()
        ours = [parameter.grad for parameter in model.parameters()]
        mean = torch.autograd.grad(model(inputs_RF).sum() / distributed.world_size, list(model.parameters()))
        for one, other in zip(ours, mean, strict=True):
            assert one is not None
            assert torch.allclose(one, other, atol=1e-2 if half else 1e-6), (half, static)
distributed.shutdown()
os._exit(0)

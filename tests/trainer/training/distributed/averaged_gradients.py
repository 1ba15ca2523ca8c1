# SPDX-License-Identifier: Apache-2.0
"""A rank that checks, in each way for gradients to travel, that they become the mean over the ranks.

Each step accumulates three micro-batches; DDP's static graph fails where such a step is its first pass.
"""

from __future__ import annotations

import os
from itertools import product

import torch
from shoestring_trainer.training.data.dataset import ImageDataset, LabeledImages
from shoestring_trainer.training.distributed.context import find_place, join_process_group
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.step import build_ddp
from torch import nn

MICRO_BATCHES = 3
distributed = find_place()
join_process_group(distributed)
rank, world_size = distributed.rank, distributed.world_size
images = LabeledImages(torch.zeros(2, 1, 1, 1000, dtype=torch.uint8), torch.zeros(2, dtype=torch.long))
data = ImageDataset(images, images, ["a", "b"], 255.0, [0.5], [0.2], {})
for half, static in product((False, True), repeat=2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1000, 50), nn.Linear(50, 2))
    settings = Settings(batch_size=world_size, fp16_allreduce=half, static_graph=static, bucket_cap_mb=0.1)
    ddp = build_ddp(model, distributed, data, settings, Precision.FP32)
    for _ in range(2):
        inputs_RMF = torch.rand(world_size, MICRO_BATCHES, 1000)
        model.zero_grad()
        for number in range(MICRO_BATCHES):
            with distributed.sync_gradients(ddp, when=number == MICRO_BATCHES - 1):
                ddp(inputs_RMF[rank, number : number + 1]).sum().backward()
        ours = [parameter.grad for parameter in model.parameters()]
        mean = torch.autograd.grad(model(inputs_RMF.flatten(0, 1)).sum() / world_size, list(model.parameters()))
        for one, other in zip(ours, mean, strict=True):
            assert one is not None
            assert torch.allclose(one, other, atol=3e-2 if half else 1e-5), (half, static)
distributed.shutdown()
os._exit(0)

# SPDX-License-Identifier: Apache-2.0
"""The gradient noise scale: roughly the batch size beyond which larger batches, and so more machines, help little.

It is the trace of the gradient covariance over the squared gradient norm, estimated from the gradient norms of a small
and a large batch. Source: S. McCandlish et al., "An Empirical Model of Large-Batch Training" (2018), appendix A.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from shoestring_trainer.training.distributed.context import DistributedContext

DECAY = 0.9
"""Of the two running means, whose ratio is the estimate: each measurement alone is far too noisy."""


class GradientNoiseScale:
    """Estimate the noise scale by comparing each rank's gradient of one micro-batch with that of the whole batch."""

    def __init__(self, model: nn.Module, distributed: DistributedContext) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._distributed = distributed
        self._noise = self._signal = 0.0
        self._micro_batch = torch.zeros(2, dtype=torch.float64)

    def add_micro_batch(self, images: int, grad_scale: float) -> None:
        """Measure a micro-batch's gradient before the all-reduce.

        images      in the micro-batch
        grad_scale  factor of the mean gradient over them
        """
        self._micro_batch = torch.stack(
            [self._squared_grad_norm(grad_scale), torch.tensor(images, dtype=torch.float64)]
        )

    def update(self, batch_size: int, grad_scale: float) -> float | None:
        """Measure the whole batch's gradient. Return the noise scale in images; None if there is no estimate yet."""
        whole = self._squared_grad_norm(grad_scale).item()
        distributed = self._distributed
        summed = distributed.all_reduce(self._micro_batch.to(distributed.device)).cpu() / distributed.world_size
        part, images = summed.tolist()
        if not math.isfinite(part + whole):
            return None  # an fp16 overflow: the loss scaler skips this step
        self._noise = DECAY * self._noise + (part - whole) / (1 / images - 1 / batch_size)
        self._signal = DECAY * self._signal + (batch_size * whole - images * part) / (batch_size - images)
        return self._noise / self._signal if min(self._noise, self._signal) > 0 else None

    def _squared_grad_norm(self, grad_scale: float) -> Tensor:
        norms = [parameter.grad.norm() for parameter in self._parameters if parameter.grad is not None]
        return (torch.stack(norms).double().square().sum() / grad_scale**2).cpu()

# SPDX-License-Identifier: Apache-2.0
"""The gradient noise scale: about the batch beyond which more images a step, and so more machines, help little.

It is the noise's trace over the squared gradient, from the lengths of the gradients of a small and a large batch.
Source: S. McCandlish et al., "An Empirical Model of Large-Batch Training" (2018), appendix A.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from shoestring_trainer.training.distributed.context import DistributedContext

DECAY = 0.9
"""Of the two running means, whose quotient it is: each alone is far too noisy."""


class NoiseScale:
    """Compares the gradient of a part of the batch, on each rank, with that of the whole."""

    def __init__(self, model: nn.Module, distributed: DistributedContext) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._distributed = distributed
        self._noise = self._signal = 0.0
        self._part = torch.zeros(2, dtype=torch.float64)

    def see_part(self, images: int, unit: float) -> None:
        """Take in the gradient of `images` of them, not yet averaged over ranks; `unit` · their mean gradient."""
        self._part = torch.stack([self._squared(unit), torch.tensor(images, dtype=torch.float64)])

    def see_batch(self, batch: int, unit: float) -> float | None:
        """Take in the gradient of the whole batch. The noise scale in images; None while there is no estimate."""
        whole = self._squared(unit).item()
        summed = (
            self._distributed.all_reduce(self._part.to(self._distributed.device)).cpu() / self._distributed.world_size
        )
        part, images = summed.tolist()
        if not math.isfinite(part + whole):
            return None  # an overflow, which the loss scale answers
        self._noise = DECAY * self._noise + (part - whole) / (1 / images - 1 / batch)
        self._signal = DECAY * self._signal + (batch * whole - images * part) / (batch - images)
        return self._noise / self._signal if min(self._noise, self._signal) > 0 else None

    def _squared(self, unit: float) -> Tensor:
        lengths = [parameter.grad.norm() for parameter in self._parameters if parameter.grad is not None]
        return (torch.stack(lengths).double().square().sum() / unit**2).cpu()

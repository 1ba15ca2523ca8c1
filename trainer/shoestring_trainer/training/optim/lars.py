# SPDX-License-Identifier: Apache-2.0
"""LARS: each layer's learning rate is proportional to the norm of its weights over that of its gradient.

Source: Y. You et al., "Large Batch Training of Convolutional Networks" (2017). timm's LARS, which has the same results,
can't skip a step unless the host waits to know whether it should.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shoestring_trainer.training.optim.fused_sgd import FusedSGD

TRUST_COEFFICIENT = 0.001
EPSILON = 1e-8


class LARS(FusedSGD):
    """LARS for groups with weight decay; norms and biases, which have none, take plain steps."""

    def step_group(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], found_inf: Tensor | None
    ) -> None:
        if decay := group["weight_decay"]:
            weight_norms = torch.stack(torch._foreach_norm(weights))
            gradient_norms = torch.stack(torch._foreach_norm(gradients))
            ratios = TRUST_COEFFICIENT * weight_norms / (gradient_norms + decay * weight_norms + EPSILON)
            ratios = torch.where((weight_norms > 0) & (gradient_norms > 0), ratios, 1.0)
            gradients = list(torch._foreach_add(gradients, weights, alpha=decay))
            torch._foreach_mul_(gradients, ratios.unbind())
            group = group | {"weight_decay": 0.0}
        super().step_group(group, weights, gradients, found_inf)

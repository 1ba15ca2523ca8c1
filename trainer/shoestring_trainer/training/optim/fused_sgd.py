# SPDX-License-Identifier: Apache-2.0
"""SGD that a loss scaler can skip without anybody waiting for the device: the base of our own optimizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd


class FusedSGD(torch.optim.Optimizer):
    """SGD with momentum, whose `step_group` subclasses extend. All state is created at once, so it can be restored.

    The loss scaler sets `grad_scale` and `found_inf` for a step, on the device, as it does for PyTorch's own fused
    optimizers. A step with an overflow changes no bit of weights and state.
    """

    _step_supports_amp_scaling = True

    def __init__(self, groups: list[dict[str, Any]], **defaults: Any) -> None:
        super().__init__(groups, defaults)
        start_momentum(self)

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:  # type: ignore[override]
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            gradients = [weight.grad for weight in weights]
            if weights and scale is not None:
                torch._foreach_div_(gradients, scale)
            if weights:
                self.step_group(group, weights, gradients, found_inf)

    def step_group(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], found_inf: Tensor | None
    ) -> None:
        """Step with these gradients, which are in the weights' memory format, unless `found_inf` is positive."""
        sgd(
            weights, gradients, [self.state[weight]["momentum_buffer"] for weight in weights],
            weight_decay=group["weight_decay"], momentum=group["momentum"], lr=group["lr"], dampening=0.0,
            nesterov=group["nesterov"] and group["momentum"] > 0, maximize=False, found_inf=found_inf,
            foreach=(half := is_half_on_cpu(weights)), fused=not half,
        )  # fmt: skip


def is_half_on_cpu(weights: Iterable[Tensor]) -> bool:
    """Return whether PyTorch's fused SGD (2.13) fails: it changes only the last few numbers of such a tensor."""
    return any(weight.device.type == "cpu" and weight.dtype.itemsize == 2 for weight in weights)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let momentum start at zero, not with the first gradients: those may be of a step that the loss scaler skips."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


def assign(target: Tensor, value: Tensor, found_inf: Tensor | None) -> None:
    """Copy `value` to `target`, unless `found_inf` is positive."""
    target.copy_(value if found_inf is None else torch.where(found_inf > 0, target, value))

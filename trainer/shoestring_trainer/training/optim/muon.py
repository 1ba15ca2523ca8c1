# SPDX-License-Identifier: Apache-2.0
"""Muon: the momentum of a convolution's gradient is orthogonalized. Source: K. Jordan, airbench94_muon (2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shoestring_trainer.training.optim.fused_sgd import FusedSGD

NEWTON_SCHULZ_COEFFICIENTS = [(3.4445, -4.7750, 2.0315)] * 3
"""Three iterations of the quintic whose slope at zero is steepest: K. Jordan, cifar10-airbench (2024)."""
EPSILON = 1e-7


class Muon(FusedSGD):
    """Muon for the groups marked `is_muon`, Nesterov SGD for the others.

    Before each step a convolution's weight is scaled to norm √(filters); the update is the momentum of the gradient, as
    a matrix of filters x rest, orthogonalized so that all singular values are near one.
    (timm's and torch's own Muon don't scale the weight; torch's takes no convolutions.)

    orthogonalize  `newton_schulz`, or that compiled, as the source has it
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, orthogonalize: Callable[[Tensor], Tensor], **defaults: Any
    ) -> None:
        super().__init__(groups, **defaults)
        self._orthogonalize = orthogonalize

    @torch.no_grad()
    def compile_ahead(self) -> None:
        """Orthogonalize matrices of all shapes once, which compiles for them what is to be compiled."""
        for group in self.param_groups:
            if group["is_muon"]:
                orthogonalized([torch.zeros_like(weight) for weight in group["params"]], self._orthogonalize)

    def step_group(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], found_inf: Tensor | None
    ) -> None:
        if not group["is_muon"]:
            super().step_group(group, weights, gradients, found_inf)
            return
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        decay: float | Tensor = group["momentum"]
        inverse_norms = torch._foreach_reciprocal(torch._foreach_norm(weights))
        scales = torch._foreach_mul(inverse_norms, [len(weight) ** 0.5 for weight in weights])
        if found_inf is not None:  # -0, not 0, is what adds nothing to any number
            skips = found_inf > 0
            gradients = [torch.where(skips, -0.0, gradient) for gradient in gradients]
            decay, scales = torch.where(skips, 1.0, decay), torch.where(skips, 1.0, torch.stack(scales)).unbind()
        torch._foreach_mul_(buffers, decay)
        torch._foreach_add_(buffers, gradients)
        nesterov = torch._foreach_add(gradients, buffers, alpha=group["momentum"])
        updates = orthogonalized(nesterov, self._orthogonalize)
        if found_inf is not None:
            updates = [torch.where(skips, 0.0, update) for update in updates]
        torch._foreach_mul_(weights, scales)
        torch._foreach_add_(weights, updates, alpha=-group["lr"])


def orthogonalized(gradients: Sequence[Tensor], orthogonalize: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return each gradient, as a matrix of filters x rest, with all singular values near one.

    Those of one shape are computed together, as a stack of matrices.
    """
    updates = list(gradients)
    for shape in dict.fromkeys(gradient.shape for gradient in gradients):
        places = [place for place, gradient in enumerate(gradients) if gradient.shape == shape]
        stack = torch.stack([gradients[place] for place in places])
        orthogonal = orthogonalize(stack.flatten(2)).view(stack.shape)
        for place, update in zip(places, orthogonal.unbind(), strict=True):
            updates[place] = update
    return updates


def newton_schulz(matrices_BMN: Tensor) -> Tensor:
    """Return matrices with the singular vectors of the given ones and singular values near one, in bf16.

    As timm's `zeropower_via_newtonschulz`, whose import would take the start of a run 2.2 s of CPU.
    """
    x = matrices_BMN.bfloat16()
    if is_tall := x.size(1) > x.size(2):
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)
    for a, b, c in NEWTON_SCHULZ_COEFFICIENTS:
        squared = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(squared, squared, squared, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x

# SPDX-License-Identifier: Apache-2.0
"""Shampoo and K-FAC for convolutions and linear layers: the gradient, as a matrix of outputs x inputs, is multiplied by
a preconditioner on each side, then rescaled to its original norm, so learning rates are those of SGD.

Sources: V. Gupta et al., "Shampoo: Preconditioned Stochastic Tensor Optimization" (2018); J. Martens, R. Grosse,
"Optimizing Neural Networks with Kronecker-factored Approximate Curvature" (2015); R. Grosse, J. Martens for
convolutions (2016). Keeping the norm is "grafting": R. Anil et al., "Scalable Second Order Optimization" (2020).

K-FAC's Fisher matrix is the empirical one, whose gradients are those of the data's own labels and cost no further
backward pass, or that of labels drawn from the network's predictions (F. Kunstner et al., 2019: how the two differ).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from shoestring_trainer.training.optim.fused_sgd import FusedSGD, assign

DECAY = 0.95
"""Of the running statistics, at each of their updates."""
MAX_DIM = 2304
"""A larger dimension (more than 256 channels with a 3x3 kernel) gets no preconditioner."""


class Preconditioner(FusedSGD, abc.ABC):
    """SGD with momentum over gradients that a subclass preconditions.

    every    steps between two updates of a preconditioner, which cost the cube of the matrix size
    damping  added to each eigenvalue, as a fraction of their mean
    updates  whether the next step is one of them; `set_hyperparams` says so by the number of the step
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float, nesterov: bool, every: int, damping: float
    ) -> None:
        super().__init__(groups, momentum=momentum, nesterov=nesterov, lr=0.0)
        self.every, self._damping, self.updates = every, damping, True

    @abc.abstractmethod
    def precondition(self, weight: Tensor, gradient: Tensor, found_inf: Tensor | None) -> Tensor:
        """Return the preconditioned gradient of `weight`, as outputs x inputs."""

    def step_group(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], found_inf: Tensor | None
    ) -> None:
        preconditioned = list(gradients)
        for place, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            if len(self.state[weight]) > 1:
                update = _with_norm(self.precondition(weight, gradient, found_inf), gradient.norm())
                preconditioned[place] = torch.empty_like(gradient).copy_(update.view(gradient.shape))
        super().step_group(group, weights, preconditioned, found_inf)


class Shampoo(Preconditioner):
    """Precondition each side by an inverse root of the running mean of gradient x gradientᵀ over that side."""

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)
        for weight in _matrices(self):
            for side, size in enumerate(weight.flatten(1).shape):
                if size <= MAX_DIM:
                    self.state[weight][f"moment{side}"] = weight.new_zeros(size, size)
                    self.state[weight][f"root{side}"] = torch.eye(size, device=weight.device)

    def precondition(self, weight: Tensor, gradient: Tensor, found_inf: Tensor | None) -> Tensor:
        state, out = self.state[weight], gradient.flatten(1)
        sides = [side for side in (0, 1) if f"moment{side}" in state]
        for side in sides:
            matrix = gradient.flatten(1) if side == 0 else gradient.flatten(1).T
            moment, root = state[f"moment{side}"], state[f"root{side}"]
            assign(moment, moment.lerp(matrix @ matrix.T, 1 - DECAY), found_inf)
            if self.updates:
                assign(root, _inverse_power(moment, 1 / (2 * len(sides)), self._damping), found_inf)
        if 0 in sides:
            out = state["root0"] @ out
        return out @ state["root1"] if 1 in sides else out


class KFAC(Preconditioner):
    """Precondition by the inverses of two covariances: of a layer's inputs, and of the gradients of its outputs.

    samples_labels  these gradients are of labels drawn from the network's predictions: `add_sampled_gradients`

    Only weights of nn.Linear and of ungrouped nn.Conv2d up to MAX_DIM; all others take plain SGD steps.
    """

    def __init__(
        self, groups: list[dict[str, Any]], model: nn.Module, *, samples_labels: bool = False, **options: Any
    ) -> None:
        super().__init__(groups, **options)
        self._samples_labels = samples_labels
        self._outputs: list[tuple[Tensor, GradientEdge]] = []
        self._covariances: dict[Tensor, dict[str, Tensor]] = {}
        for layer in model.modules():
            if _has_kronecker_factors(layer):
                weight = layer.weight
                assert isinstance(weight, Tensor)
                if weight in self.state:
                    self._add_layer(layer, weight)

    def _add_layer(self, layer: nn.Module, weight: Tensor) -> None:
        for name, size in zip(("outputs", "inputs"), weight.flatten(1).shape, strict=True):
            self.state[weight][name] = weight.new_zeros(size, size)
            self.state[weight][f"{name}_inverse"] = torch.eye(size, device=weight.device)
        layer.register_forward_hook(self._make_hook(weight))

    def _make_hook(self, weight: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """Return a forward hook that sums up covariances in the steps that update preconditioners."""

        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self.updates and layer.training and output.requires_grad:
                self._add_covariance(weight, "inputs", _unfold_inputs(layer, inputs[0].detach()))
                if self._samples_labels:
                    self._outputs.append((weight, get_gradient_edge(output)))
                else:
                    output.register_hook(
                        lambda gradient: self._add_covariance(weight, "outputs", _flatten_output_gradient(gradient))
                    )

        return hook

    def add_sampled_gradients(self, logits_NK: Tensor, seed: int) -> None:
        """After a forward pass of a step that updates preconditioners: draw labels and add their covariances."""
        if not self._outputs:
            return
        draws = torch.Generator(logits_NK.device).manual_seed(seed)
        odds_NK = logits_NK.detach().softmax(1)  # torch.multinomial draws so too, but waits to check the odds
        uniform_NK = torch.rand(odds_NK.shape, generator=draws, device=odds_NK.device)
        labels_N = (odds_NK / -uniform_NK.log()).argmax(1)
        loss = F.cross_entropy(logits_NK, labels_N, reduction="sum")
        gradients = torch.autograd.grad(loss, [edge for _, edge in self._outputs], retain_graph=True)
        for (weight, _), gradient in zip(self._outputs, gradients, strict=True):
            self._add_covariance(weight, "outputs", _flatten_output_gradient(gradient))
        self._outputs.clear()

    def _add_covariance(self, weight: Tensor, name: str, rows_RD: Tensor) -> None:
        with torch.autocast(rows_RD.device.type, enabled=False):  # of the forward pass: sums of squares overflow fp16
            covariance = rows_RD.float().T @ rows_RD.float()
        sums = self._covariances.setdefault(weight, {})
        sums[name] = sums[name] + covariance if name in sums else covariance

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Also discard the covariances of the last step, and outputs of a pass whose labels weren't drawn."""
        self._covariances.clear()
        self._outputs.clear()
        super().zero_grad(set_to_none)

    def precondition(self, weight: Tensor, gradient: Tensor, found_inf: Tensor | None) -> Tensor:
        state, covariances = self.state[weight], self._covariances.get(weight, {})
        for name, covariance in covariances.items():
            if dist.is_initialized():
                dist.all_reduce(covariance)
            # only the shape of a covariance matters: the update gets the gradient's norm
            shape = covariance / covariance.diagonal().mean().clamp(min=1e-30)
            assign(state[name], state[name].lerp(shape, 1 - DECAY), found_inf)
            mean = state[name].diagonal().mean().clamp(min=1e-30)
            damped = state[name] / mean + self._damping * torch.eye(len(covariance), device=covariance.device)
            factor, _ = torch.linalg.cholesky_ex(damped)  # `cholesky` waits to know whether it failed
            assign(state[f"{name}_inverse"], torch.cholesky_inverse(factor), found_inf)
        out: Tensor = state["outputs_inverse"] @ gradient.flatten(1) @ state["inputs_inverse"]
        return out


def _matrices(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from (weight for weight in group["params"] if weight.ndim > 1)


def _has_kronecker_factors(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return False
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or isinstance(layer.padding, str)):
        return False
    return max(layer.weight.flatten(1).shape) <= MAX_DIM


def _unfold_inputs(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs of each of the layer's outputs: rows x inputs."""
    if isinstance(layer, nn.Conv2d):
        patches_NDL = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        return patches_NDL.transpose(1, 2).flatten(0, 1)
    return x.flatten(0, -2)


def _flatten_output_gradient(gradient: Tensor) -> Tensor:
    """Return rows x outputs."""
    return gradient.flatten(2).transpose(1, 2).flatten(0, 1) if gradient.ndim == 4 else gradient.flatten(0, -2)


def _inverse_power(moment: Tensor, power: float, damping: float) -> Tensor:
    """Return moment^-power of a symmetric matrix, with `damping` times its mean eigenvalue added to each eigenvalue.

    NaN where a number of the matrix is not finite: `eigh` would raise an error, but such a step has to be seen in the
    weights and the loss, as with any optimizer. On a GPU, PyTorch's `eigh` waits to check its result.
    """
    is_finite = moment.isfinite().all()
    eigenvalues, eigenvectors = torch.linalg.eigh(torch.where(is_finite, moment, 0.0))
    damped = eigenvalues.clamp(min=0) + damping * eigenvalues.mean().clamp(min=1e-30)
    root: Tensor = (eigenvectors * damped.pow(-power)) @ eigenvectors.T
    return torch.where(is_finite, root, math.nan)


def _with_norm(update: Tensor, norm: Tensor) -> Tensor:
    scaled: Tensor = update * (norm / update.norm().clamp(min=1e-30))
    return scaled

# SPDX-License-Identifier: Apache-2.0
"""Shampoo and K-FAC for convolutions and linear layers: the gradient, as a matrix of outputs x inputs, is multiplied by
a matrix on each side that evens out how steep the loss is. Its length stays, so rates are those of SGD.

Sources: V. Gupta et al., "Shampoo: Preconditioned Stochastic Tensor Optimization" (2018); J. Martens, R. Grosse,
"Optimizing Neural Networks with Kronecker-factored Approximate Curvature" (2015); R. Grosse, J. Martens for
convolutions (2016). The length kept is "grafting": R. Anil et al., "Scalable Second Order Optimization" (2020).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

DECAY = 0.95
"""Of the running statistics, each time they take in a batch."""
EVERY = 10
"""Steps between two computations of a preconditioner, which cost the cube of a side."""
LARGEST = 2304
"""A longer side (more than 256 channels under a 3x3 filter) is left as it is."""
DAMPING = 0.03
"""Added to each direction of the curvature, as a share of their mean."""


class Preconditioned(torch.optim.Optimizer, abc.ABC):
    """SGD with momentum along directions that a subclass gives. All state is made at once, so it can be restored."""

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, nesterov: bool) -> None:
        super().__init__(groups, {"momentum": momentum, "nesterov": nesterov, "lr": 0.0})
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)

    @abc.abstractmethod
    def direction(self, weight: Tensor) -> Tensor:
        """The gradient of `weight`, preconditioned, as outputs x inputs."""

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = weight.grad
                if len(self.state[weight]) > 1:
                    gradient = _of_length(self.direction(weight), gradient.norm()).view_as(gradient)
                gradient = gradient.add(weight, alpha=group["weight_decay"])
                buffer = self.state[weight]["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
                walk = gradient.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
                weight.add_(walk, alpha=-group["lr"])


class Shampoo(Preconditioned):
    """Each side by an inverse root of the running mean of gradient x gradientᵀ over that side."""

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, nesterov: bool) -> None:
        super().__init__(groups, momentum=momentum, nesterov=nesterov)
        for weight in _matrices(self):
            for side, size in enumerate(weight.flatten(1).shape):
                if size <= LARGEST:
                    self.state[weight][f"moment{side}"] = weight.new_zeros(size, size)
                    self.state[weight][f"root{side}"] = torch.eye(size, device=weight.device)
            self.state[weight]["count"] = weight.new_zeros(())

    def direction(self, weight: Tensor) -> Tensor:
        assert weight.grad is not None
        state, out = self.state[weight], weight.grad.flatten(1)
        sides = [side for side in (0, 1) if f"moment{side}" in state]
        fresh = state["count"].item() % EVERY == 0
        for side in sides:
            across = weight.grad.flatten(1) if side == 0 else weight.grad.flatten(1).T
            state[f"moment{side}"].lerp_(across @ across.T, 1 - DECAY)
            if fresh:
                state[f"root{side}"].copy_(_inverse_power(state[f"moment{side}"], 1 / (2 * len(sides))))
        state["count"].add_(1)
        if 0 in sides:
            out = state["root0"] @ out
        return out @ state["root1"] if 1 in sides else out


class KFAC(Preconditioned):
    """By the inverses of two covariances: of a layer's inputs, and of the gradients of its outputs.

    Only weights of nn.Linear and of ungrouped nn.Conv2d without a side over LARGEST; all others go by SGD.
    """

    def __init__(self, groups: list[dict[str, Any]], model: nn.Module, *, momentum: float, nesterov: bool) -> None:
        super().__init__(groups, momentum=momentum, nesterov=nesterov)
        self._sums: dict[Tensor, dict[str, Tensor]] = {}
        for layer in model.modules():
            if _has_factors(layer):
                weight = layer.weight
                assert isinstance(weight, Tensor)
                if weight in self.state:
                    self._add_layer(layer, weight)

    def _add_layer(self, layer: nn.Module, weight: Tensor) -> None:
        for name, size in zip(("outputs", "inputs"), weight.flatten(1).shape, strict=True):
            self.state[weight][name] = weight.new_zeros(size, size)
            self.state[weight][f"{name}_inverse"] = torch.eye(size, device=weight.device)
        self.state[weight]["count"] = weight.new_zeros(())
        layer.register_forward_hook(self._watcher(weight))

    def _watcher(self, weight: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """A forward hook that sums up covariances in those steps in which preconditioners are computed."""

        def watch(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            if layer.training and output.requires_grad and self.state[weight]["count"].item() % EVERY == 0:
                self._take_in(weight, "inputs", _rows_of_input(layer, given[0].detach()))
                output.register_hook(lambda gradient: self._take_in(weight, "outputs", _rows_of_output(gradient)))

        return watch

    def _take_in(self, weight: Tensor, name: str, rows_RD: Tensor) -> None:
        sums, own = self._sums.setdefault(weight, {}), rows_RD.float().T @ rows_RD.float()
        sums[name] = sums[name] + own if name in sums else own

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Also forgets what was watched since the last step."""
        self._sums.clear()
        super().zero_grad(set_to_none)

    def direction(self, weight: Tensor) -> Tensor:
        assert weight.grad is not None
        state, sums = self.state[weight], self._sums.get(weight, {})
        for name, own in sums.items():
            if dist.is_initialized():
                dist.all_reduce(own)
            # a covariance counts by its shape alone: the length of the step is the gradient's
            state[name].lerp_(own / own.diagonal().mean().clamp(min=1e-30), 1 - DECAY)
            mean = state[name].diagonal().mean()
            damped = state[name] / mean + DAMPING * torch.eye(len(own), device=own.device)
            state[f"{name}_inverse"].copy_(torch.cholesky_inverse(torch.linalg.cholesky(damped)))
        state["count"].add_(1)
        out: Tensor = state["outputs_inverse"] @ weight.grad.flatten(1) @ state["inputs_inverse"]
        return out


def _matrices(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from (weight for weight in group["params"] if weight.ndim > 1)


def _has_factors(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return False
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or isinstance(layer.padding, str)):
        return False
    return max(layer.weight.flatten(1).shape) <= LARGEST


def _rows_of_input(layer: nn.Module, x: Tensor) -> Tensor:
    """What each output of the layer sees: rows x inputs."""
    if isinstance(layer, nn.Conv2d):
        patches_NDL = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        return patches_NDL.transpose(1, 2).flatten(0, 1)
    return x.flatten(0, -2)


def _rows_of_output(gradient: Tensor) -> Tensor:
    """Rows x outputs."""
    return gradient.flatten(2).transpose(1, 2).flatten(0, 1) if gradient.ndim == 4 else gradient.flatten(0, -2)


def _inverse_power(moment: Tensor, power: float) -> Tensor:
    """moment^-power of a symmetric matrix, with DAMPING of its mean eigenvalue added to each."""
    values, vectors = torch.linalg.eigh(moment)
    damped = values.clamp(min=0) + DAMPING * values.mean().clamp(min=1e-30)
    root: Tensor = (vectors * damped.pow(-power)) @ vectors.T
    return root


def _of_length(direction: Tensor, length: Tensor) -> Tensor:
    scaled: Tensor = direction * (length / direction.norm().clamp(min=1e-30))
    return scaled

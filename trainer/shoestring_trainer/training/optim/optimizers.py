# SPDX-License-Identifier: Apache-2.0
"""Optimizers by name, over parameter groups with their own learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.hyperparam_schedule import StepHyperparams
from shoestring_trainer.training.models.layers import PatchWhitening
from shoestring_trainer.training.optim.preconditioners import KFAC, Shampoo
from shoestring_trainer.training.settings import Settings

OPTIMIZERS = ("sgd", "muon", "lars", "shampoo", "kfac")
NEWTON_SCHULZ_COEFFICIENTS = [(3.4445, -4.7750, 2.0315)] * 3
"""Three iterations of the quintic whose slope at zero is steepest: K. Jordan, cifar10-airbench (2024)."""


def build_optimizer(model: nn.Module, settings: Settings, *, uses_grad_scaler: bool) -> torch.optim.Optimizer:
    """Return the settings' optimizer over the model's trainable parameters. Raises UserError for unknown names.

    uses_grad_scaler  gradients come from a GradScaler: the fused step would count a skipped first step as taken
    """
    groups = list(_param_groups(model, settings))
    nesterov = settings.nesterov and settings.momentum > 0
    match settings.optimizer:
        case "sgd":
            return torch.optim.SGD(
                groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, fused=not uses_grad_scaler
            )
        case "muon":
            return Muon(groups, momentum=settings.momentum)
        case "lars":
            from shoestring_trainer.training.vision_compat import Lars

            return Lars(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)
        case "shampoo":
            return Shampoo(groups, momentum=settings.momentum, nesterov=nesterov)
        case "kfac":
            return KFAC(groups, model, momentum=settings.momentum, nesterov=nesterov)
        case _:
            raise UserError(f"there is no optimizer {settings.optimizer!r}; known: {', '.join(OPTIMIZERS)}")


def set_hyperparams(optimizer: torch.optim.Optimizer, hyperparams: StepHyperparams) -> None:
    """Set every group's learning rate for this step, and its momentum unless the group has its own."""
    for group in optimizer.param_groups:
        is_whitening = group["kind"] == "whitening"
        factor = hyperparams.whitening_lr_factor if is_whitening else hyperparams.lr_factor
        group["lr"] = group["max_lr"] * factor
        if not group["is_muon"]:
            group["momentum"] = hyperparams.momentum


class Muon(torch.optim.Optimizer):
    """Muon for the groups marked `is_muon`, Nesterov SGD for the others.

    Before each step a convolution's weight is scaled to norm √(filters); the update is the momentum of the gradient, as
    a matrix of filters x rest, orthogonalized so that all singular values are near one. Source: airbench94_muon.
    (timm's and torch's own Muon don't scale the weight; torch's takes no convolutions.)
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float) -> None:
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            (self._step_muon if group["is_muon"] else self._step_sgd)(weights, group)

    def _step_muon(self, filters: list[Tensor], group: dict[str, Any]) -> None:
        from shoestring_trainer.training.vision_compat import zeropower_via_newtonschulz

        for weight in filters:
            assert weight.grad is not None
            buffer = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
            buffer.mul_(group["momentum"]).add_(weight.grad)
            gradient = weight.grad.add(buffer, alpha=group["momentum"])
            update = zeropower_via_newtonschulz(
                gradient.flatten(1), len(NEWTON_SCHULZ_COEFFICIENTS), NEWTON_SCHULZ_COEFFICIENTS
            )
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            weight.add_(update.view(weight.shape), alpha=-group["lr"])

    def _step_sgd(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        buffers: list[Tensor | None] = [self.state[weight].get("momentum_buffer") for weight in weights]
        sgd(
            weights, [weight.grad for weight in weights if weight.grad is not None], buffers,
            weight_decay=group["weight_decay"], momentum=group["momentum"], lr=group["lr"], dampening=0.0,
            nesterov=group["momentum"] > 0, maximize=False, foreach=False,
        )  # fmt: skip
        for weight, buffer in zip(weights, buffers, strict=True):
            if buffer is not None:
                self.state[weight]["momentum_buffer"] = buffer


def _param_groups(model: nn.Module, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield the trainable parameters by kind, each kind with its highest learning rate and its weight decay."""
    kinds: dict[str, list[nn.Parameter]] = {
        "filters": [],
        "weights": [],
        "biases": [],
        "norm biases": [],
        "whitening": [],
    }
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(module, PatchWhitening):
                kinds["whitening"].append(parameter)
            elif isinstance(module, nn.BatchNorm2d) and parameter is module.bias:
                kinds["norm biases"].append(parameter)
            else:
                kinds["filters" if parameter.ndim == 4 else "weights" if parameter.ndim > 1 else "biases"].append(
                    parameter
                )
    learning_rates = {"norm biases": settings.bias_lr or settings.lr, "whitening": settings.whitening_lr or settings.lr}
    for kind, parameters in kinds.items():
        is_muon = kind == "filters" and settings.optimizer == "muon"
        lr = settings.muon_lr if is_muon else learning_rates.get(kind, settings.lr)
        decays = (kind in ("filters", "weights") or settings.decay_norms_and_biases) and not is_muon
        weight_decay = settings.weight_decay / lr if settings.decoupled_weight_decay else settings.weight_decay
        if parameters:
            yield {
                "params": parameters, "lr": lr, "max_lr": lr, "weight_decay": weight_decay if decays else 0.0,
                "kind": kind, "is_muon": is_muon,
                "momentum": settings.muon_momentum if is_muon else settings.momentum,
            }  # fmt: skip

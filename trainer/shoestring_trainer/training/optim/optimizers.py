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


def build_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return the settings' optimizer over the model's trainable parameters. Raises UserError for unknown names."""
    groups = list(_param_groups(model, settings))
    nesterov = settings.nesterov and settings.momentum > 0
    preconditioner = {"every": settings.preconditioner_every_steps, "damping": settings.preconditioner_damping}
    match settings.optimizer:
        case "sgd":
            optimizer = torch.optim.SGD(
                groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, fused=True
            )
            if settings.momentum > 0 or settings.momentum_schedule:
                _start_momentum(optimizer)
            return optimizer
        case "muon":
            return Muon(groups, momentum=settings.momentum)
        case "lars":
            from shoestring_trainer.training.vision_compat import Lars

            return Lars(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)
        case "shampoo":
            return Shampoo(groups, momentum=settings.momentum, nesterov=nesterov, **preconditioner)
        case "kfac":
            samples_labels = settings.kfac_fisher == "sampled"
            return KFAC(
                groups, model, samples_labels=samples_labels,
                momentum=settings.momentum, nesterov=nesterov, **preconditioner,
            )  # fmt: skip
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

    _step_supports_amp_scaling = True
    """The loss scaler sets `grad_scale` and `found_inf` for a step, on the device, so that nobody waits for them."""

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float) -> None:
        super().__init__(groups, {"momentum": momentum})
        _start_momentum(self)

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:  # type: ignore[override]
        scaling = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            (self._step_muon if group["is_muon"] else self._step_sgd)(weights, group, *scaling)

    def _step_muon(
        self, filters: list[Tensor], group: dict[str, Any], grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        from shoestring_trainer.training.vision_compat import zeropower_via_newtonschulz

        momentum = group["momentum"]
        for weight in filters:
            assert weight.grad is not None
            gradient, decay, norm = weight.grad, momentum, len(weight) ** 0.5 / weight.norm()
            if grad_scale is not None:
                gradient = gradient / grad_scale
            if found_inf is not None:  # then leave weight and buffer as they are
                skips = found_inf > 0
                gradient = torch.where(skips, 0.0, gradient)
                decay, norm = torch.where(skips, 1.0, decay), torch.where(skips, 1.0, norm)
            buffer = self.state[weight]["momentum_buffer"].mul_(decay).add_(gradient)
            update = zeropower_via_newtonschulz(
                gradient.add(buffer, alpha=momentum).flatten(1),
                len(NEWTON_SCHULZ_COEFFICIENTS), NEWTON_SCHULZ_COEFFICIENTS,
            )  # fmt: skip
            if found_inf is not None:
                update = torch.where(skips, 0.0, update)
            weight.mul_(norm).add_(update.view(weight.shape), alpha=-group["lr"])

    def _step_sgd(
        self, weights: list[Tensor], group: dict[str, Any], grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        sgd(
            weights, [weight.grad for weight in weights if weight.grad is not None],
            [self.state[weight]["momentum_buffer"] for weight in weights],
            weight_decay=group["weight_decay"], momentum=group["momentum"], lr=group["lr"], dampening=0.0,
            nesterov=group["momentum"] > 0, maximize=False, fused=True,
            grad_scale=grad_scale, found_inf=found_inf,
        )  # fmt: skip


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let momentum start at zero, not with the first gradients: those may be of a step that the loss scaler skips."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


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

# SPDX-License-Identifier: Apache-2.0
"""Optimizers by name, over parameter groups with their own learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.hyperparam_schedule import StepHyperparams
from shoestring_trainer.training.models.compiler import compiled
from shoestring_trainer.training.models.layers import PatchWhitening
from shoestring_trainer.training.optim.fused_sgd import is_half_on_cpu, start_momentum
from shoestring_trainer.training.optim.lars import LARS
from shoestring_trainer.training.optim.muon import Muon, newton_schulz
from shoestring_trainer.training.optim.preconditioners import KFAC, Preconditioner, Shampoo
from shoestring_trainer.training.settings import Settings

OPTIMIZERS = ("sgd", "muon", "lars", "shampoo", "kfac")


def build_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return the settings' optimizer over the model's trainable parameters. Raises UserError for unknown names."""
    groups = list(_param_groups(model, settings))
    nesterov = settings.nesterov and settings.momentum > 0
    preconditioner = {"every": settings.preconditioner_every_steps, "damping": settings.preconditioner_damping}
    match settings.optimizer:
        case "sgd":
            half = is_half_on_cpu(weight for group in groups for weight in group["params"])
            optimizer = torch.optim.SGD(
                groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov,
                foreach=half, fused=not half,
            )  # fmt: skip
            if settings.momentum > 0 or settings.momentum_schedule:
                start_momentum(optimizer)
            return optimizer
        case "muon":
            # not in another mode: it would run in a CUDA graph of its own
            mode = "none" if settings.compile == "none" else "default"
            return Muon(
                groups, momentum=settings.momentum, nesterov=True, orthogonalize=compiled(newton_schulz, mode)
            )  # fmt: skip
        case "lars":
            return LARS(groups, momentum=settings.momentum, nesterov=nesterov)
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
    """Set every group's learning rate for this step, and its momentum unless the group has its own.

    Also whether the step updates preconditioners.
    """
    if isinstance(optimizer, Preconditioner):
        optimizer.updates = hyperparams.step % optimizer.every == 0
    for group in optimizer.param_groups:
        is_whitening = group["kind"] == "whitening"
        factor = hyperparams.whitening_lr_factor if is_whitening else hyperparams.lr_factor
        group["lr"] = group["max_lr"] * factor
        if not group["is_muon"]:
            group["momentum"] = hyperparams.momentum


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

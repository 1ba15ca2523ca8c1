# SPDX-License-Identifier: Apache-2.0
"""Recipes that reproduce published code have its network, initialization and update: published_figures.json has the
figures that this code gave, with its repository, commit and file. (test_recipe_schedules.py: its rates and schedules.)

`flop` is of one image's forward pass. An update is the sum, over the tensors of a kind, of the norms by which one
optimizer step at the highest learning rate changes them, from weights and images that `fill` and `images` define.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shoestring_core import recipes
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule, StepHyperparams
from shoestring_trainer.training.models.registry import build_model
from shoestring_trainer.training.optim.optimizers import build_optimizer, set_hyperparams
from shoestring_trainer.training.results.throughput import FORWARD_AND_BACKWARD
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.trainer.training.optim.test_recipe_schedules import OURS, choose

PUBLISHED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "published_figures.json").read_text(encoding="utf-8")
)
KINDS = {4: "filters", 2: "weights", 1: "biases"}


def parameters_by_kind(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for layer in model.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if isinstance(layer, nn.BatchNorm2d):
                yield "norm scales" if name == "weight" else "norm biases", parameter
            else:
                yield KINDS[parameter.ndim], parameter


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Set each parameter to values that look random and depend on its kind and shape alone.

    A linear layer treats both halves of its inputs alike: sources differ in whether averages or maxima come first.
    """
    for kind, parameter in parameters_by_kind(model):
        noise = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * 12.9898) * 43758.5453
        noise = (noise % 1 - 0.5) * 12**0.5
        if kind == "weights":
            noise = noise[: len(noise) // 2].view(len(parameter), -1).repeat(1, 2)
        if kind in ("filters", "weights"):
            parameter.copy_(noise.view(parameter.shape) * (2 / parameter[0].numel()) ** 0.5)
        else:
            parameter.copy_(0.1 * noise + (kind == "norm scales"))


def images(side: int) -> Tensor:
    at = torch.arange(4 * 3 * side * side, dtype=torch.float64)
    return torch.sin(at * 0.37 + torch.sin(at * 0.011)).view(4, 3, side, side).float()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_network_and_the_update_of_its_source(name: str):
    published, (recipe, settings) = PUBLISHED[name], choose(name)
    classes, smoothing = published["classes"], settings.label_smoothing
    torch.manual_seed(0)
    model = build_model(**recipe.model, settings=settings, classes=classes, mean=[0.0] * 3, std=[1.0] * 3)

    assert sum(parameter.numel() for parameter in model.parameters()) == published["parameters"]
    initial: dict[str, list[Tensor]] = {}
    for kind, parameter in parameters_by_kind(model):
        initial.setdefault(kind, []).append(parameter.detach().flatten())
    assert initial.keys() == published["initial"].keys()
    for kind, (mean, rms) in published["initial"].items():
        values = torch.cat(initial[kind])
        near = max(0.02, 3 / len(values) ** 0.5) * rms
        assert values.mean().item() == pytest.approx(mean, abs=near), kind
        assert values.square().mean().sqrt().item() == pytest.approx(rms, abs=near), kind

    fill(model)
    schedule = HyperparamSchedule.from_settings(settings, 50_000)
    peak, momentum = max(factor for _, factor in schedule.lr_factors), min(value for _, value in schedule.momentum)
    optimizer = build_optimizer(model, settings)
    set_hyperparams(optimizer, StepHyperparams(peak, peak, momentum))
    before = [parameter.detach().clone() for _, parameter in parameters_by_kind(model)]
    labels = torch.arange(4) * 3 % classes
    logits = model(images(published["update_side"]))
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    (loss / (1 if settings.sum_loss else len(labels))).backward()
    optimizer.step()
    update = dict.fromkeys(published["update"], 0.0)
    for (kind, parameter), old in zip(parameters_by_kind(model), before, strict=True):
        update[kind] += (parameter.detach() - old).double().norm().item()
    assert loss.item() / len(labels) == pytest.approx(published["loss"], rel=1e-4)
    assert update == pytest.approx(published["update"], rel=2e-3)

    shapes: Counter[str] = Counter()

    def count_shape(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        weight, side = layer.weight, output.shape[2:3]
        assert isinstance(weight, Tensor)
        shapes["x".join(map(str, weight.shape[:3])) + "".join(f" {pixels}" for pixels in side)] += 1

    for layer in model.modules():
        # timm's blur is no such layer, and FFCV's is none either
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count_shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta").eval()(torch.empty(1, 3, published["side"], published["side"], device="meta"))
    assert shapes == published["shapes"]
    assert counter.get_total_flops() == pytest.approx(published["flop"], rel=1e-6)


def test_pages_resnet18_has_the_size_that_he_states():
    """5.21 million parameters; 2.8×10⁹ FLOP an image, forward and backward: How to Train Your ResNet, part 1."""
    page = PUBLISHED["cifar10/page-resnet18-baseline step=batch-512"]
    assert page["parameters"] == pytest.approx(5.21e6, rel=2e-3)
    assert FORWARD_AND_BACKWARD * page["flop"] == pytest.approx(2.76e9, rel=2e-3)


WITHOUT_CODE = {
    # He et al.'s ResNet-50 by torchvision's documentation: 25,557,032 parameters, 4.089 GMAC at 224 pixels
    "imagenet/tencent-resnet50": (25_557_032, 4.089e9),
    "imagenet/alibaba-1": (25_557_032, 4.089e9),
    # torchvision's AlexNet, 61,100,840 and 0.714 GMAC, with Jia et al.'s norm of 256 channels after the last pooling
    "imagenet/tencent-alexnet-bn": (61_100_840 + 2 * 256, 0.714e9),
    # torchvision's ResNet-50 with a stem of 3x3 in place of 7x7 and ten classes
    "cifar10/superconv-resnet50": (25_557_032 - 40 * 3 * 64 - 990 * 2049, None),
    # kuangliu/pytorch-cifar's PreActResNet18 with a norm in the stem; pooling doubles what the classifier sees
    "cifar10/superconv-preact18": (11_171_146 + 2 * 64 + 512 * 10, None),
    "cifar10/superconv-preact18 global_pool=avg": (11_171_146 + 2 * 64, None),
}


@pytest.mark.parametrize("name", WITHOUT_CODE)
def test_a_recipe_whose_source_published_no_code_has_the_network_that_it_names(name: str):
    parameters, multiply_adds = WITHOUT_CODE[name]
    recipe, settings = choose(name)
    classes = 1000 if name.startswith("imagenet/") else 10
    with torch.device("meta"):
        model = build_model(**recipe.model, settings=settings, classes=classes, mean=[0.0] * 3, std=[1.0] * 3)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    if multiply_adds:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.to("meta").eval()(torch.empty(1, 3, 224, 224, device="meta"))
        assert counter.get_total_flops() / 2 == pytest.approx(multiply_adds, rel=2e-3)


def test_each_recipe_with_a_claim_has_its_network_checked():
    checked = {name.split()[0] for name in (*PUBLISHED, *WITHOUT_CODE)}
    assert checked == {recipe.name for recipe in recipes.all() if recipe.claim} - OURS

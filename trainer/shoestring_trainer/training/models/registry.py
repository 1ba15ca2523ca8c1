# SPDX-License-Identifier: Apache-2.0
"""Build a model by name. Every model takes unnormalized images, float NCHW in [0, 1], and normalizes them itself, so a
saved model carries all of its preprocessing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from shoestring_trainer.training.data.dataset import LazyImages
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.models.airbench import airbench
from shoestring_trainer.training.models.convnets import alexnet_bn, convnet
from shoestring_trainer.training.models.layers import Normalize, PatchWhitening
from shoestring_trainer.training.models.resnets import (
    bkj_resnet18,
    page_resnet18,
    preact_resnet18,
    resnet9,
    resnet9_tricks,
    wide_resnet,
)
from shoestring_trainer.training.settings import Settings

LIBRARIES = ("torchvision/", "timm/")
WHITENING_IMAGES = 5000
"""Training images that the whitening layer is initialized from."""
MODELS: dict[str, Callable[..., nn.Module]] = {
    "airbench": airbench,
    "alexnet_bn": alexnet_bn,
    "bkj_resnet18": bkj_resnet18,
    "convnet": convnet,
    "page_resnet18": page_resnet18,
    "page_resnet18_lean": functools.partial(page_resnet18, stem_norm=False),
    "preact_resnet18": preact_resnet18,
    "resnet9": resnet9,
    "resnet9_tricks": resnet9_tricks,
    "wide_resnet": wide_resnet,
}
"""Builders by name; each takes (channels, classes, settings) and the further arguments in a recipe's `model`."""


def build_model(
    name: str, settings: Settings, *, classes: int, mean: Sequence[float], std: Sequence[float], **arguments: Any
) -> nn.Module:
    """Return the model `name`, or the one that the settings name, for images of len(mean) channels.

    `arguments` are those in a recipe's `model` besides the name. Raises UserError for unknown names.
    """
    if settings.model not in ("", name):
        name, arguments = settings.model, {}
    if name.startswith(LIBRARIES):
        from shoestring_trainer.training.models.library import build_library_model

        return nn.Sequential(Normalize(mean, std), build_library_model(name, len(mean), classes, settings))
    if name not in MODELS:
        raise UserError(
            f"there is no model {name!r}; known: {', '.join(sorted(MODELS))}, and torchvision/NAME and timm/NAME for "
            "any of theirs"
        )
    return nn.Sequential(Normalize(mean, std), MODELS[name](len(mean), classes, settings, **arguments))


def init_from_data(model: nn.Module, images_NCHW: Tensor | LazyImages, max_value: float) -> None:
    """Initialize the whitening layer of a model of `build_model`, if it has one, from uint8 training images."""
    for layer in model.modules():
        if isinstance(layer, PatchWhitening):
            every = max(1, len(images_NCHW) // WHITENING_IMAGES)
            sample_NCHW = images_NCHW[::every][:WHITENING_IMAGES].float() / max_value
            normalize = next(model.children())
            layer.init_from_data(normalize(sample_NCHW))

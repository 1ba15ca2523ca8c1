# SPDX-License-Identifier: Apache-2.0
"""Networks by name. Every one takes raw pictures, float NCHW in [0, 1], and normalises them itself, so a saved
model carries all of its preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from shoestring_trainer.training.faults import UserError
from shoestring_trainer.training.settings import Settings


def build_model(
    name: str, settings: Settings, *, classes: int, mean: Sequence[float], std: Sequence[float]
) -> nn.Module:
    """The network `name` for pictures of len(mean) channels. Raises UserError for unknown names."""
    if name not in MODELS:
        raise UserError(f"there is no model {name!r}; known: {', '.join(sorted(MODELS))}")
    return nn.Sequential(Normalise(mean, std), MODELS[name](len(mean), classes, settings))


class Normalise(nn.Module):
    """(picture − mean) / std per channel; the two are buffers, so they travel with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, pictures_NCHW: Tensor) -> Tensor:
        return (pictures_NCHW - self.mean) / self.std


def convnet(channels: int, classes: int, settings: Settings) -> nn.Module:
    """Three 3×3 convolutions and a linear layer, for small grey pictures. Uses `width` and `dropout`."""
    w = settings.width
    return nn.Sequential(
        _conv(channels, w),
        _conv(w, 2 * w),
        nn.MaxPool2d(2),
        _conv(2 * w, 4 * w),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(settings.dropout),
        nn.Linear(16 * w, classes),
    )


def resnet9(channels: int, classes: int, settings: Settings) -> nn.Module:
    """ResNet-9: D. Page, "How to Train Your ResNet" (2018), with a global pool, so for any size from 16 pixels.

    Uses `width` (channels of the first convolution, 64 in the source) and `dropout`.
    """
    w = settings.width
    return nn.Sequential(
        _conv(channels, w),
        _conv(w, 2 * w),
        nn.MaxPool2d(2),
        Residual(2 * w),
        _conv(2 * w, 4 * w),
        nn.MaxPool2d(2),
        _conv(4 * w, 8 * w),
        nn.MaxPool2d(2),
        Residual(8 * w),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Dropout(settings.dropout),
        nn.Linear(8 * w, classes, bias=False),
        Scale(0.125),
    )


class Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_conv(channels, channels), _conv(channels, channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = x_NCHW + self.branch(x_NCHW)
        return out


class Scale(nn.Module):
    """Multiply by a constant: keeps the first logits small."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


MODELS: dict[str, Callable[[int, int, Settings], nn.Module]] = {"convnet": convnet, "resnet9": resnet9}


def _conv(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )

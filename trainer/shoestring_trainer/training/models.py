# SPDX-License-Identifier: Apache-2.0
"""Networks by name. Every one takes raw pictures, float NCHW in [0, 1], and normalises them itself, so a saved
model carries all of its preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring_trainer.training.faults import UserError
from shoestring_trainer.training.settings import Settings


def build_model(
    name: str, settings: Settings, *, classes: int, mean: Sequence[float], std: Sequence[float], **shape: Any
) -> nn.Module:
    """The network `name` for pictures of len(mean) channels; `shape` is what a recipe's `model` says beside the name.

    Raises UserError for unknown names.
    """
    if name not in MODELS:
        raise UserError(f"there is no model {name!r}; known: {', '.join(sorted(MODELS))}")
    return nn.Sequential(Normalise(mean, std), MODELS[name](len(mean), classes, settings, **shape))


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


def preact_resnet18(channels: int, classes: int, settings: Settings) -> nn.Module:
    """Preactivation ResNet-18 for small pictures, average and maximum pooled side by side before the classifier.

    As in B. Johnson's DAWNBench entry (2018), rebuilt by D. Page. Uses `width` (64 in the source).
    """
    w = settings.width
    widths = [w, w, w, 2 * w, 2 * w, 4 * w, 4 * w, 8 * w, 8 * w]
    blocks = [Preactivation(inside, outside, 1 if inside == outside else 2) for inside, outside in pairwise(widths)]
    return nn.Sequential(_conv(channels, w), *blocks, ConcatPool(), nn.Linear(16 * w, classes))


class Preactivation(nn.Module):
    """Two convolutions, each after its norm and activation, beside the input."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        same = inside == outside and stride == 1
        self.shortcut = None if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        active_NCHW = F.relu(self.norm1(x_NCHW))
        beside_NCHW = x_NCHW if self.shortcut is None else self.shortcut(active_NCHW)
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active_NCHW)))) + beside_NCHW
        return out


class ConcatPool(nn.Module):
    """Average and maximum of each channel, side by side."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.cat([x_NCHW.mean((2, 3)), x_NCHW.amax((2, 3))], dim=1)


def airbench(
    channels: int, classes: int, settings: Settings,
    *, widths: Sequence[int], convs: int = 2, statistics_momentum: float = 0.4, unit_head: bool = False,
) -> nn.Module:  # fmt: skip
    """K. Jordan's network for 94 to 96 % on CIFAR-10 (cifar10-airbench, 2024), for pictures of 32 pixels.

    widths               channels of the three groups, in units of `width`
    convs                per group; 3: with a residual over the last two
    statistics_momentum  weight of the newest batch in the norms' running statistics
    unit_head            classifier weights of spread 1, logits divided by its inputs; else PyTorch's and 1/9
    """
    first, second, third = (unit * settings.width for unit in widths)
    whitening = Whitening(channels)
    head = nn.Linear(third, classes, bias=False)
    if unit_head:
        head.weight.data /= head.weight.data.std()
    return nn.Sequential(
        whitening,
        nn.GELU(),
        AirbenchGroup(whitening.out_channels, first, convs, statistics_momentum),
        AirbenchGroup(first, second, convs, statistics_momentum),
        AirbenchGroup(second, third, convs, statistics_momentum),
        nn.MaxPool2d(3),
        nn.Flatten(),
        head,
        Scale(1 / third if unit_head else 1 / 9),
    )


class AirbenchGroup(nn.Module):
    """Convolution, pool, then norm and activation; one more convolution, or two with a residual over them."""

    def __init__(self, inside: int, outside: int, convs: int, statistics_momentum: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_identity_conv(inside if n == 0 else outside, outside) for n in range(convs))
        self.norms = nn.ModuleList(_unscaled_norm(outside, statistics_momentum) for _ in range(convs))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = F.gelu(self.norms[0](F.max_pool2d(self.convs[0](x_NCHW), 2)))
        if len(self.convs) == 2:
            return F.gelu(self.norms[1](self.convs[1](x_NCHW)))
        middle_NCHW = F.gelu(self.norms[1](self.convs[1](x_NCHW)))
        return F.gelu(x_NCHW + self.norms[2](self.convs[2](middle_NCHW)))


class Whitening(nn.Conv2d):
    """A frozen 2x2 convolution that decorrelates patches: `learn` sets it from pictures. Its bias is trained."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2 * 4 * channels, 2)
        self.weight.requires_grad_(False)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def learn(self, pictures_NCHW: Tensor, epsilon: float = 5e-4) -> None:
        """The filters: eigenvectors of the patches' covariance, each scaled to unit response, and their negatives."""
        size = self.weight[0].numel()
        covariance = torch.zeros(size, size, dtype=torch.float64, device=pictures_NCHW.device)
        patches = 0
        for some_NCHW in pictures_NCHW.split(500):
            flat_PD = F.unfold(some_NCHW, 2).transpose(1, 2).reshape(-1, size).double()
            covariance += flat_PD.T @ flat_PD
            patches += len(flat_PD)
        eigenvalues_D, eigenvectors_DD = torch.linalg.eigh(covariance / patches)
        filters_DD = (eigenvectors_DD / (eigenvalues_D + epsilon).sqrt()).T.flip(0)
        self.weight.copy_(torch.cat([filters_DD, -filters_DD]).view_as(self.weight))


def learn_from_pictures(model: nn.Module, bytes_NCHW: Tensor, white: float) -> None:
    """Set what a model of `build_model` takes from training pictures before the first step: its whitening layer."""
    for layer in model.modules():
        if isinstance(layer, Whitening):
            every = max(1, len(bytes_NCHW) // WHITENING_PICTURES)
            sample_NCHW = bytes_NCHW[::every][:WHITENING_PICTURES].float() / white
            layer.learn(next(model.children())(sample_NCHW))


WHITENING_PICTURES = 5000
MODELS: dict[str, Callable[..., nn.Module]] = {
    "airbench": airbench,
    "convnet": convnet,
    "preact_resnet18": preact_resnet18,
    "resnet9": resnet9,
}
"""By name; each takes (channels, classes, settings) and what a recipe's `model` says beside the name."""


def _conv(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


def _identity_conv(inside: int, outside: int) -> nn.Module:
    """A 3x3 convolution whose first filters pass their channel through."""
    conv = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inside])
    return conv


def _unscaled_norm(channels: int, statistics_momentum: float) -> nn.Module:
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=statistics_momentum)
    norm.weight.requires_grad_(False)
    return norm

# SPDX-License-Identifier: Apache-2.0
"""Networks by name. Every one takes raw images, float NCHW in [0, 1], and normalises them itself, so a saved
model carries all of its preprocessing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.settings import Settings


def build_model(
    name: str, settings: Settings, *, classes: int, mean: Sequence[float], std: Sequence[float], **shape: Any
) -> nn.Module:
    """The network `name`, or the one that the settings name, for images of len(mean) channels.

    `shape` is what a recipe's `model` says beside its name. Raises UserError for unknown names.
    """
    if settings.model not in ("", name):
        name, shape = settings.model, {}
    if name.startswith(LIBRARIES):
        from shoestring_trainer.training.models.library import library_model

        return nn.Sequential(Normalise(mean, std), library_model(name, len(mean), classes, settings))
    if name not in MODELS:
        raise UserError(
            f"there is no model {name!r}; known: {', '.join(sorted(MODELS))}, and torchvision/NAME and timm/NAME for "
            "any of theirs"
        )
    return nn.Sequential(Normalise(mean, std), MODELS[name](len(mean), classes, settings, **shape))


class Normalise(nn.Module):
    """(image − mean) / std per channel; the two are buffers, so they travel with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return (images_NCHW - self.mean) / self.std


def convnet(channels: int, classes: int, settings: Settings) -> nn.Module:
    """Three 3×3 convolutions and a linear layer, for small grey images. Uses `width` and `dropout`."""
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

    def __init__(self, channels: int, conv: Callable[[int, int], nn.Module] | None = None) -> None:
        super().__init__()
        conv = conv or _conv
        self.branch = nn.Sequential(conv(channels, channels), conv(channels, channels))

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


def resnet9_tricks(channels: int, classes: int, settings: Settings) -> nn.Module:
    """ResNet-9 with the architectural part of D. Page's bag of tricks (part 8, 2019).

    Frozen 3x3 patch whitening and a 1x1 convolution; pool before norm; ghost batch norms whose scale is fixed; CELU.
    Uses `width` (64 in the source).
    """
    w = settings.width
    whitening = Whitening(channels, side=3, mirrored=False, epsilon=0.01)
    return nn.Sequential(
        whitening,
        _ghost_conv(whitening.out_channels, w, side=1),
        _ghost_conv(w, 2 * w, pool=True),
        Residual(2 * w, _ghost_conv),
        _ghost_conv(2 * w, 4 * w, pool=True),
        _ghost_conv(4 * w, 8 * w, pool=True),
        Residual(8 * w, _ghost_conv),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * w, classes, bias=False),
        Scale(1 / 16),
    )


class GhostNorm(nn.BatchNorm2d):
    """Batch norm over groups of GROUP images, without a scale to learn; a batch that doesn't divide is one group."""

    GROUP = 32

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.weight.requires_grad_(False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        count, channels, height, width = x_NCHW.shape
        groups = count // self.GROUP
        if not self.training or groups < 2 or count % self.GROUP:
            return super().forward(x_NCHW)
        assert self.running_mean is not None
        assert self.running_var is not None
        x_GCHW = x_NCHW.reshape(-1, groups * channels, height, width)
        mean, var = self.running_mean.repeat(groups), self.running_var.repeat(groups)
        weight, bias = self.weight.repeat(groups), self.bias.repeat(groups)
        out_GCHW = F.batch_norm(x_GCHW, mean, var, weight, bias, True, self.momentum or 0.1, self.eps)
        self.running_mean.copy_(mean.view(groups, channels).mean(0))
        self.running_var.copy_(var.view(groups, channels).mean(0))
        return out_GCHW.reshape(x_NCHW.shape)


def preact_resnet18(channels: int, classes: int, settings: Settings, *, repeated_norm: bool = True) -> nn.Module:
    """Preactivation ResNet-18 for small images, average and maximum pooled side by side before the classifier.

    As in B. Johnson's DAWNBench entry (2018), rebuilt by D. Page. Uses `width` (64 in the source) and `pool`.
    repeated_norm  the stem has a norm and an activation, which the first block's own repeat
    """
    w = settings.width
    widths = [w, w, w, 2 * w, 2 * w, 4 * w, 4 * w, 8 * w, 8 * w]
    blocks = [Preactivation(inside, outside, 1 if inside == outside else 2) for inside, outside in pairwise(widths)]
    stem = _conv(channels, w) if repeated_norm else nn.Conv2d(channels, w, 3, padding=1, bias=False)
    pool, features = (AveragePool(), 8 * w) if settings.global_pool == "avg" else (ConcatPool(), 16 * w)
    return nn.Sequential(stem, *blocks, pool, nn.Linear(features, classes))


def wide_resnet(channels: int, classes: int, settings: Settings, *, blocks: int = 3, widen: int = 6) -> nn.Module:
    """A wide preactivation ResNet for small images: three groups of `blocks`, classified by a 1x1 convolution.

    As in fast.ai's DAWNBench entries (2018). Uses `width` (channels of the stem, 16 in the source; the groups have 1, 2
    and 4 times `widen` as many).
    """
    stem = settings.width
    widths = [stem * widen * 2**group for group in range(3)]
    layers: list[nn.Module] = []
    for inside, outside in pairwise([stem, *widths]):
        layers.append(Preactivation(inside, outside, 1 if inside == stem else 2))
        layers += [Preactivation(outside, outside, 1) for _ in range(blocks - 1)]
    return nn.Sequential(
        nn.Conv2d(channels, stem, 3, padding=1, bias=False),
        *layers,
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(inplace=True),
        nn.Conv2d(widths[-1], classes, 1),
        AveragePool(),
    )


def alexnet_bn(channels: int, classes: int, settings: Settings) -> nn.Module:
    """AlexNet as torchvision has it (A. Krizhevsky, 2014), with a batch norm after the last pool: X. Jia et al., 2018.

    For images from 63 pixels. Uses `width` (64 in the source) and `dropout`.
    """
    w = settings.width
    sides = [
        (channels, w, 11, 4, 2),
        (w, 3 * w, 5, 1, 2),
        (3 * w, 6 * w, 3, 1, 1),
        (6 * w, 4 * w, 3, 1, 1),
        (4 * w, 4 * w, 3, 1, 1),
    ]
    convs = [nn.Sequential(nn.Conv2d(*side), nn.ReLU(inplace=True)) for side in sides]
    return nn.Sequential(
        convs[0],
        nn.MaxPool2d(3, 2),
        convs[1],
        nn.MaxPool2d(3, 2),
        *convs[2:],
        nn.MaxPool2d(3, 2),
        nn.BatchNorm2d(4 * w),
        nn.AdaptiveAvgPool2d(6),
        nn.Flatten(),
        nn.Dropout(settings.dropout),
        nn.Linear(4 * w * 36, 64 * w),
        nn.ReLU(inplace=True),
        nn.Dropout(settings.dropout),
        nn.Linear(64 * w, 64 * w),
        nn.ReLU(inplace=True),
        nn.Linear(64 * w, classes),
    )


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


class AveragePool(nn.Module):
    """The average of each channel."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.mean((2, 3))


class ConcatPool(nn.Module):
    """Average and maximum of each channel, side by side."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.cat([x_NCHW.mean((2, 3)), x_NCHW.amax((2, 3))], dim=1)


def airbench(
    channels: int, classes: int, settings: Settings,
    *, widths: Sequence[int], convs: int = 2, statistics_momentum: float = 0.4, unit_head: bool = False,
) -> nn.Module:  # fmt: skip
    """K. Jordan's network for 94 to 96 % on CIFAR-10 (cifar10-airbench, 2024), for images of 32 pixels.

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
    """A frozen convolution that decorrelates patches: `learn` sets it from images.

    side      of a patch, in pixels; odd ones are padded
    mirrored  with the negative of each filter, and a bias that is trained
    epsilon   added to each eigenvalue, so that flat directions are not blown up
    """

    def __init__(self, channels: int, side: int = 2, *, mirrored: bool = True, epsilon: float = 5e-4) -> None:
        filters = side * side * channels
        super().__init__(channels, 2 * filters if mirrored else filters, side, padding=(side - 1) // 2, bias=mirrored)
        self._epsilon = epsilon
        self.weight.requires_grad_(False)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def learn(self, images_NCHW: Tensor) -> None:
        """The filters: eigenvectors of the patches' covariance, each scaled to unit response, and their negatives."""
        size = self.weight[0].numel()
        covariance = torch.zeros(size, size, dtype=torch.float64, device=images_NCHW.device)
        patches = 0
        for some_NCHW in images_NCHW.split(500):
            flat_PD = F.unfold(some_NCHW, self.kernel_size).transpose(1, 2).reshape(-1, size).double()
            covariance += flat_PD.T @ flat_PD
            patches += len(flat_PD)
        eigenvalues_D, eigenvectors_DD = torch.linalg.eigh(covariance / patches)
        filters_DD = (eigenvectors_DD / (eigenvalues_D + self._epsilon).sqrt()).T.flip(0)
        both_FD = filters_DD if self.bias is None else torch.cat([filters_DD, -filters_DD])
        self.weight.copy_(both_FD.view_as(self.weight))


def init_from_data(model: nn.Module, uint8_NCHW: Tensor, white: float) -> None:
    """Set what a model of `build_model` takes from training images before the first step: its whitening layer."""
    for layer in model.modules():
        if isinstance(layer, Whitening):
            every = max(1, len(uint8_NCHW) // WHITENING_IMAGES)
            sample_NCHW = uint8_NCHW[::every][:WHITENING_IMAGES].float() / white
            layer.learn(next(model.children())(sample_NCHW))


LIBRARIES = ("torchvision/", "timm/")
WHITENING_IMAGES = 5000
MODELS: dict[str, Callable[..., nn.Module]] = {
    "airbench": airbench,
    "alexnet_bn": alexnet_bn,
    "convnet": convnet,
    "preact_resnet18": preact_resnet18,
    "preact_resnet18_lean": functools.partial(preact_resnet18, repeated_norm=False),
    "resnet9": resnet9,
    "resnet9_tricks": resnet9_tricks,
    "wide_resnet": wide_resnet,
}
"""By name; each takes (channels, classes, settings) and what a recipe's `model` says beside the name."""


def _conv(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


def _ghost_conv(inside: int, outside: int, side: int = 3, *, pool: bool = False) -> nn.Module:
    """Convolution, pool if asked, then ghost batch norm and activation."""
    conv = nn.Conv2d(inside, outside, side, padding=side // 2, bias=False)
    return nn.Sequential(conv, *([nn.MaxPool2d(2)] if pool else []), GhostNorm(outside), nn.CELU(0.3, inplace=True))


def _identity_conv(inside: int, outside: int) -> nn.Module:
    """A 3x3 convolution whose first filters pass their channel through."""
    conv = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inside])
    return conv


def _unscaled_norm(channels: int, statistics_momentum: float) -> nn.Module:
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=statistics_momentum)
    norm.weight.requires_grad_(False)
    return norm

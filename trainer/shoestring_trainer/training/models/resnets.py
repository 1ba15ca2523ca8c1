# SPDX-License-Identifier: Apache-2.0
"""Residual networks for small images."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from shoestring_trainer.training.models.layers import (
    GhostBatchNorm,
    GlobalAvgPool,
    GlobalConcatPool,
    PatchWhitening,
    Residual,
    Scale,
    conv_bn_relu,
)
from shoestring_trainer.training.settings import Settings


def resnet9(channels: int, classes: int, settings: Settings) -> nn.Module:
    """Return ResNet-9: D. Page, "How to Train Your ResNet" (2018), with a global pool, so for any size from 16 pixels.

    Uses `width` (channels of the first convolution, 64 in the source) and `dropout`.
    """
    w = settings.width
    return nn.Sequential(
        conv_bn_relu(channels, w),
        conv_bn_relu(w, 2 * w),
        nn.MaxPool2d(2),
        Residual(2 * w),
        conv_bn_relu(2 * w, 4 * w),
        nn.MaxPool2d(2),
        conv_bn_relu(4 * w, 8 * w),
        nn.MaxPool2d(2),
        Residual(8 * w),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Dropout(settings.dropout),
        nn.Linear(8 * w, classes, bias=False),
        Scale(0.125),
    )


def resnet9_tricks(channels: int, classes: int, settings: Settings) -> nn.Module:
    """Return ResNet-9 with the architectural part of D. Page's bag of tricks (part 8, 2019).

    Frozen 3x3 patch whitening and a 1x1 convolution; pool before norm; ghost batch norms with a fixed scale; CELU.
    Uses `width` (64 in the source).
    """
    w = settings.width
    whitening = PatchWhitening(channels, kernel_size=3, with_negatives=False, epsilon=0.01)
    return nn.Sequential(
        whitening,
        _conv_ghost_bn_celu(whitening.out_channels, w, kernel_size=1),
        _conv_ghost_bn_celu(w, 2 * w, pool=True),
        Residual(2 * w, _conv_ghost_bn_celu),
        _conv_ghost_bn_celu(2 * w, 4 * w, pool=True),
        _conv_ghost_bn_celu(4 * w, 8 * w, pool=True),
        Residual(8 * w, _conv_ghost_bn_celu),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * w, classes, bias=False),
        Scale(1 / 16),
    )


def _conv_ghost_bn_celu(in_channels: int, out_channels: int, kernel_size: int = 3, *, pool: bool = False) -> nn.Module:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(
        conv, *([nn.MaxPool2d(2)] if pool else []), GhostBatchNorm(out_channels), nn.CELU(0.3, inplace=True)
    )


def preact_resnet18(channels: int, classes: int, settings: Settings, *, stem_norm: bool = True) -> nn.Module:
    """Return a preactivation ResNet-18 for small images, with average and maximum pooled before the classifier.

    As in B. Johnson's DAWNBench entry (2018), rebuilt by D. Page. Uses `width` (64 in the source) and `global_pool`.
    stem_norm  the stem has a norm and an activation, which those of the first block repeat
    """
    w = settings.width
    widths = [w, w, w, 2 * w, 2 * w, 4 * w, 4 * w, 8 * w, 8 * w]
    blocks = [PreActBlock(before, after, 1 if before == after else 2) for before, after in pairwise(widths)]
    stem = conv_bn_relu(channels, w) if stem_norm else nn.Conv2d(channels, w, 3, padding=1, bias=False)
    pool, features = (GlobalAvgPool(), 8 * w) if settings.global_pool == "avg" else (GlobalConcatPool(), 16 * w)
    return nn.Sequential(stem, *blocks, pool, nn.Linear(features, classes))


def wide_resnet(
    channels: int, classes: int, settings: Settings, *, blocks_per_group: int = 3, widen_factor: int = 6
) -> nn.Module:
    """Return a wide preactivation ResNet for small images: three groups of blocks, and a 1x1 convolution as classifier.

    As in fast.ai's DAWNBench entries (2018). Uses `width` (channels of the stem, 16 in the source; the groups have 1, 2
    and 4 times `widen_factor` as many).
    """
    stem = settings.width
    widths = [stem * widen_factor * 2**group for group in range(3)]
    layers: list[nn.Module] = []
    for before, after in pairwise([stem, *widths]):
        layers.append(PreActBlock(before, after, 1 if before == stem else 2))
        layers += [PreActBlock(after, after, 1) for _ in range(blocks_per_group - 1)]
    return nn.Sequential(
        nn.Conv2d(channels, stem, 3, padding=1, bias=False),
        *layers,
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(inplace=True),
        nn.Conv2d(widths[-1], classes, 1),
        GlobalAvgPool(),
    )


class PreActBlock(nn.Module):
    """Two convolutions, each after its norm and activation, added to a shortcut of the input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        is_identity = in_channels == out_channels and stride == 1
        self.shortcut = None if is_identity else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        active_NCHW = F.relu(self.norm1(x_NCHW))
        shortcut_NCHW = x_NCHW if self.shortcut is None else self.shortcut(active_NCHW)
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active_NCHW)))) + shortcut_NCHW
        return out

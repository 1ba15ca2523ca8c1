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


def preact_resnet18(
    channels: int, classes: int, settings: Settings,
    *, last_width: int = 8, stem_norm: bool = True, activated_skip: bool = False, uniform_norm_scales: bool = False,
) -> nn.Module:  # fmt: skip
    """Return a preactivation ResNet-18 for small images, with average and maximum pooled before the classifier.

    Uses `width` (64 in the sources) and `global_pool`.
    last_width           channels of the last of the four stages, in units of `width`
    stem_norm            the stem has a norm and an activation, which those of the first block repeat
    activated_skip       blocks add their normalized and activated input to their output, not the input itself
    uniform_norm_scales  initialize the norms' scales uniformly between 0 and 1, as PyTorch did until 2019; else to 1
    """
    w = settings.width
    widths = [w, w, 2 * w, 4 * w, last_width * w]
    blocks: list[nn.Module] = []
    for stage, (before, after) in enumerate(pairwise(widths)):
        blocks.append(PreActBlock(before, after, 2 if stage else 1, activated_skip=activated_skip))
        blocks.append(PreActBlock(after, after, 1, activated_skip=activated_skip))
    stem = conv_bn_relu(channels, w) if stem_norm else nn.Conv2d(channels, w, 3, padding=1, bias=False)
    pool, pooled = (GlobalAvgPool(), 1) if settings.global_pool == "avg" else (GlobalConcatPool(), 2)
    model = nn.Sequential(stem, *blocks, pool, nn.Linear(pooled * widths[-1], classes))
    if uniform_norm_scales:
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight)
    return model


def bkj_resnet18(channels: int, classes: int, settings: Settings) -> nn.Module:
    """Return the network of B. Johnson's DAWNBench entry (2018): bkj/basenet 49b2b61, examples/cifar10.py."""
    return preact_resnet18(channels, classes, settings, last_width=4, uniform_norm_scales=True)


def page_resnet18(channels: int, classes: int, settings: Settings, *, stem_norm: bool = True) -> nn.Module:
    """Return D. Page's version of it (2018): `DAWN_net` in davidcpage/cifar10-fast d31ad8d, experiments.ipynb.

    The notebook begins without the stem's norm, which the first post removes.
    """
    return preact_resnet18(
        channels, classes, settings,
        last_width=4, stem_norm=stem_norm, activated_skip=True, uniform_norm_scales=True,
    )  # fmt: skip


def wide_resnet(
    channels: int, classes: int, settings: Settings, *, blocks_per_group: int = 3, widen_factor: int = 6
) -> nn.Module:
    """Return a wide preactivation ResNet for small images, in three groups of blocks.

    `wrn_22` of fast.ai's DAWNBench entries (2018): fastai/imagenet-fast e93593c, cifar10/models/wideresnet.py. Uses
    `width` (channels of the stem, 16 in the source; the groups have 1, 2 and 4 times `widen_factor` as many).
    """
    stem = settings.width
    widths = [stem * widen_factor * 2**group for group in range(3)]
    layers: list[nn.Module] = []
    for before, after in pairwise([stem, *widths]):
        layers.append(PreActBlock(before, after, 1 if before == stem else 2))
        layers += [PreActBlock(after, after, 1) for _ in range(blocks_per_group - 1)]
    head = nn.Linear(widths[-1], classes)
    nn.init.zeros_(head.bias)
    model = nn.Sequential(
        nn.Conv2d(channels, stem, 3, padding=1, bias=False),
        *layers,
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(inplace=True),
        GlobalAvgPool(),
        head,
    )
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return model


class PreActBlock(nn.Module):
    """Two convolutions, each after its norm and activation, added to the input.

    Where the shape changes, the input is normalized, activated and projected by a 1x1 convolution.
    activated_skip  elsewhere too, it is normalized and activated
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, activated_skip: bool = False) -> None:
        super().__init__()
        self._activated_skip = activated_skip
        self.norm1, self.norm2 = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        is_identity = in_channels == out_channels and stride == 1
        self.shortcut = None if is_identity else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        active_NCHW = F.relu(self.norm1(x_NCHW))
        if self.shortcut is not None:
            skip_NCHW = self.shortcut(active_NCHW)
        else:
            skip_NCHW = active_NCHW if self._activated_skip else x_NCHW
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active_NCHW)))) + skip_NCHW
        return out

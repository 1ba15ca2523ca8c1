# SPDX-License-Identifier: Apache-2.0
"""Convolutional networks without residual connections."""

from __future__ import annotations

from torch import nn

from shoestring_trainer.training.models.layers import conv_bn_relu
from shoestring_trainer.training.settings import Settings


def convnet(channels: int, classes: int, settings: Settings) -> nn.Module:
    """Return three 3×3 convolutions and a linear layer, for small grayscale images. Uses `width` and `dropout`."""
    w = settings.width
    return nn.Sequential(
        conv_bn_relu(channels, w),
        conv_bn_relu(w, 2 * w),
        nn.MaxPool2d(2),
        conv_bn_relu(2 * w, 4 * w),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(settings.dropout),
        nn.Linear(16 * w, classes),
    )


def alexnet_bn(channels: int, classes: int, settings: Settings) -> nn.Module:
    """Return torchvision's AlexNet (A. Krizhevsky, 2014) with a batch norm after the last pool: X. Jia et al., 2018.

    For images from 63 pixels. Uses `width` (64 in the source) and `dropout`.
    """
    w = settings.width
    # input channels, output channels, kernel size, stride, padding
    arguments = [
        (channels, w, 11, 4, 2),
        (w, 3 * w, 5, 1, 2),
        (3 * w, 6 * w, 3, 1, 1),
        (6 * w, 4 * w, 3, 1, 1),
        (4 * w, 4 * w, 3, 1, 1),
    ]
    convs = [nn.Sequential(nn.Conv2d(*each), nn.ReLU(inplace=True)) for each in arguments]
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

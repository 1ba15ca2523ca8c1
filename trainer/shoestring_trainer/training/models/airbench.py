# SPDX-License-Identifier: Apache-2.0
"""The CIFAR-10 network of K. Jordan's cifar10-airbench (2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from shoestring_trainer.training.models.layers import PatchWhitening, Scale
from shoestring_trainer.training.settings import Settings


def airbench(
    channels: int, classes: int, settings: Settings,
    *, widths: Sequence[int], convs_per_group: int = 2, bn_momentum: float = 0.4, unit_std_head: bool = False,
    zero_whitening_bias: bool = True,
) -> nn.Module:  # fmt: skip
    """Return the network that reaches 94 to 96 % on CIFAR-10, for images of 32 pixels.

    widths           channels of the three groups, in units of `width`
    convs_per_group  3: with a residual connection over the last two
    bn_momentum      momentum of the batch norms' running statistics, in PyTorch's sense
    unit_std_head    initialize the classifier with standard deviation 1 and divide logits by its inputs; else use
                     PyTorch's initialization and 1/9
    zero_whitening_bias  initialize the whitening layer's bias to zero; else as PyTorch does
    """
    first, second, third = (unit * settings.width for unit in widths)
    whitening = PatchWhitening(channels, zero_bias=zero_whitening_bias)
    head = nn.Linear(third, classes, bias=False)
    if unit_std_head:
        head.weight.data /= head.weight.data.std()
    return nn.Sequential(
        whitening,
        nn.GELU(),
        ConvGroup(whitening.out_channels, first, convs_per_group, bn_momentum),
        ConvGroup(first, second, convs_per_group, bn_momentum),
        ConvGroup(second, third, convs_per_group, bn_momentum),
        nn.MaxPool2d(3),
        nn.Flatten(),
        head,
        Scale(1 / third if unit_std_head else 1 / 9),
    )


class ConvGroup(nn.Module):
    """Convolution, pool, norm and activation; then one more convolution, or two with a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, convs: int, bn_momentum: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            _identity_conv(in_channels if number == 0 else out_channels, out_channels) for number in range(convs)
        )
        self.norms = nn.ModuleList(_fixed_scale_norm(out_channels, bn_momentum) for _ in range(convs))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = F.gelu(self.norms[0](F.max_pool2d(self.convs[0](x_NCHW), 2)))
        if len(self.convs) == 2:
            return F.gelu(self.norms[1](self.convs[1](x_NCHW)))
        hidden_NCHW = F.gelu(self.norms[1](self.convs[1](x_NCHW)))
        return F.gelu(x_NCHW + self.norms[2](self.convs[2](hidden_NCHW)))


def _identity_conv(in_channels: int, out_channels: int) -> nn.Module:
    """Return a 3x3 convolution whose first filters are initialized to the identity."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:in_channels])
    return conv


def _fixed_scale_norm(channels: int, momentum: float) -> nn.Module:
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=momentum)
    norm.weight.requires_grad_(False)
    return norm

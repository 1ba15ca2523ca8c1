# SPDX-License-Identifier: Apache-2.0
"""Layers that several models share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Normalize(nn.Module):
    """(image − mean) / std per channel; both are buffers, so they are saved with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return (images_NCHW - self.mean) / self.std


class Scale(nn.Module):
    """Multiply by a constant, which keeps the initial logits small."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Residual(nn.Module):
    """x + two convolution blocks of x."""

    def __init__(self, channels: int, conv_block: Callable[[int, int], nn.Module] | None = None) -> None:
        super().__init__()
        conv_block = conv_block or conv_bn_relu
        self.branch = nn.Sequential(conv_block(channels, channels), conv_block(channels, channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = x_NCHW + self.branch(x_NCHW)
        return out


class GlobalAvgPool(nn.Module):
    """The average of each channel."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.mean((2, 3))


class GlobalConcatPool(nn.Module):
    """The average and the maximum of each channel, concatenated."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.cat([x_NCHW.mean((2, 3)), x_NCHW.amax((2, 3))], dim=1)


class GhostBatchNorm(nn.BatchNorm2d):
    """Batch norm over groups of GROUP_SIZE images, with a fixed scale; an indivisible batch is a single group."""

    GROUP_SIZE = 32

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.weight.requires_grad_(False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        count, channels, height, width = x_NCHW.shape
        groups = count // self.GROUP_SIZE
        if not self.training or groups < 2 or count % self.GROUP_SIZE:
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


class PatchWhitening(nn.Conv2d):
    """A frozen convolution that decorrelates image patches: `init_from_data` computes its filters.

    kernel_size     pixels a side of a patch; odd sizes are padded
    with_negatives  add the negative of each filter, and a trainable bias
    epsilon         added to each eigenvalue, so that directions of little variance are not amplified
    zero_bias       initialize the bias to zero; else as PyTorch does, uniformly
    """

    def __init__(
        self, channels: int, kernel_size: int = 2,
        *, with_negatives: bool = True, epsilon: float = 5e-4, zero_bias: bool = True,
    ) -> None:  # fmt: skip
        filters = kernel_size * kernel_size * channels
        out_channels = 2 * filters if with_negatives else filters
        super().__init__(channels, out_channels, kernel_size, padding=(kernel_size - 1) // 2, bias=with_negatives)
        self._epsilon = epsilon
        self.weight.requires_grad_(False)
        if self.bias is not None and zero_bias:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def init_from_data(self, images_NCHW: Tensor) -> None:
        """Set the filters to the eigenvectors of the patches' covariance, each scaled to unit variance."""
        size = self.weight[0].numel()
        covariance = torch.zeros(size, size, dtype=torch.float64, device=images_NCHW.device)
        patches = 0
        for chunk_NCHW in images_NCHW.split(500):
            patches_PD = F.unfold(chunk_NCHW, self.kernel_size).transpose(1, 2).reshape(-1, size).double()
            covariance += patches_PD.T @ patches_PD
            patches += len(patches_PD)
        eigenvalues_D, eigenvectors_DD = torch.linalg.eigh(covariance / patches)
        filters_DD = (eigenvectors_DD / (eigenvalues_D + self._epsilon).sqrt()).T.flip(0)
        filters_FD = filters_DD if self.bias is None else torch.cat([filters_DD, -filters_DD])
        self.weight.copy_(filters_FD.view_as(self.weight))


def conv_bn_relu(in_channels: int, out_channels: int) -> nn.Module:
    """Return a 3x3 convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )

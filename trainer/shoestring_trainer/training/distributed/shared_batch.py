# SPDX-License-Identifier: Apache-2.0
"""Layers for which a batch that ranks share is one batch: norms with the statistics of all of it, and dropout that is
drawn for all of it. With them a gang of any size computes what one process would, up to the order of sums.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


def share_batch(model: nn.Module, batch: int, rank: int, world: int, *, norms: bool) -> None:
    """Make the layers of `model` see the whole batch, of which this rank has the rows batch·rank/world onwards.

    Parameters, buffers and their names stay. Call it again when the batch changes.

    norms  batch norms too; else each rank normalises its own rows
    """
    first = batch * rank // world
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Dropout):
                setattr(parent, name, SharedDropout(layer.p, first, batch))
            elif norms and world > 1 and type(layer) is nn.BatchNorm2d:
                setattr(parent, name, SharedNorm.of(layer))


class SharedDropout(nn.Dropout):
    """Dropout whose mask is a part of the whole batch's: the rows from `first` on, of `batch`."""

    def __init__(self, p: float, first: int, batch: int) -> None:
        super().__init__(p)
        self.first, self.batch = first, batch

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        draws = torch.rand(max(self.batch, self.first + len(x)), *x.shape[1:], device=x.device)
        kept = draws[self.first : self.first + len(x)] >= self.p
        return x * kept / (1 - self.p)


class SharedNorm(nn.BatchNorm2d):
    """Batch norm over the rows of all ranks; they may differ in number. `torch.nn.SyncBatchNorm` is for GPUs only."""

    @staticmethod
    def of(norm: nn.BatchNorm2d) -> SharedNorm:
        """A layer with the parameters and buffers of `norm`, the very same tensors."""
        shared = SharedNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        shared.weight, shared.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(shared, name, buffer)
        return shared.train(norm.training)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_NCHW)
        with torch.no_grad():
            mean_C, variance_C, count = whole_statistics(x_NCHW)
            if self.running_mean is not None and self.running_var is not None:
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean_C, share)
                self.running_var.lerp_(variance_C * (count / (count - 1)), share)
        out: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            x_NCHW, self.weight, self.bias, mean_C, variance_C, count, self.eps
        )
        return out


def whole_statistics(x_NCHW: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and (biased) variance per channel over the rows of all ranks, and how many values each stands for."""
    variance_C, mean_C = torch.var_mean(x_NCHW.float(), (0, 2, 3), correction=0)
    own = torch.cat([mean_C, variance_C, mean_C.new_tensor([x_NCHW.numel() / x_NCHW.shape[1]])])
    of_ranks = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(of_ranks, own)
    means_RC, variances_RC, counts_R1 = torch.stack(of_ranks).double().split([len(mean_C), len(mean_C), 1], 1)
    shares_R1 = counts_R1 / counts_R1.sum()
    mean_C = (shares_R1 * means_RC).sum(0)
    variance_C = (shares_R1 * (variances_RC + (means_RC - mean_C) ** 2)).sum(0)
    return mean_C.float(), variance_C.float(), counts_R1.sum().item()


class _Normalise(torch.autograd.Function):
    """(x − mean) / √(variance + ε) · weight + bias, where mean and variance depend on the x of all ranks."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_NCHW: Tensor, weight_C: Tensor, bias_C: Tensor,
        mean_C: Tensor, variance_C: Tensor, count: float, eps: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x_NCHW, weight_C, mean_C, variance_C)
        ctx.count, ctx.eps = count, eps  # type: ignore[attr-defined]
        return F.batch_norm(x_NCHW, mean_C, variance_C, weight_C, bias_C, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient_NCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_NCHW, weight_C, mean_C, variance_C = ctx.saved_tensors  # type: ignore[attr-defined]
        count, eps = ctx.count, ctx.eps  # type: ignore[attr-defined]
        scale_C = (variance_C + eps).rsqrt()
        normal_NCHW = (x_NCHW.float() - _per_channel(mean_C)) * _per_channel(scale_C)
        wide_NCHW = gradient_NCHW.float()
        own_2C = torch.cat([wide_NCHW.sum((0, 2, 3)), (wide_NCHW * normal_NCHW).sum((0, 2, 3))])
        whole_2C = own_2C.clone()
        dist.all_reduce(whole_2C)
        (bias_C, own_weight_C), (shift_C, slope_C) = own_2C.chunk(2), (whole_2C / count).chunk(2)
        inner_NCHW = wide_NCHW - _per_channel(shift_C) - normal_NCHW * _per_channel(slope_C)
        x_gradient_NCHW = (inner_NCHW * _per_channel(weight_C * scale_C)).to(x_NCHW.dtype)
        return x_gradient_NCHW, own_weight_C, bias_C, None, None, None, None


def _per_channel(values_C: Tensor) -> Tensor:
    return values_C.view(1, -1, 1, 1)

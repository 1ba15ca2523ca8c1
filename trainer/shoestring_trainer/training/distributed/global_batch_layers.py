# SPDX-License-Identifier: Apache-2.0
"""Layers that see the global batch: norms with the statistics of all ranks' rows, and dropout masks drawn for all of
them. With them any number of ranks computes what one process would, up to the order of sums.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


def use_global_batch(model: nn.Module, batch: int, rank: int, world_size: int, *, norms: bool) -> None:
    """Make the layers of `model` see the global batch, of which this rank has the rows from batch·rank/world_size on.

    Parameters, buffers and their names stay. Call it again when the batch size changes.

    norms  batch norms too; else each rank normalizes its own rows
    """
    first = batch * rank // world_size
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Dropout):
                setattr(parent, name, GlobalBatchDropout(layer.p, first, batch))
            elif norms and world_size > 1 and type(layer) is nn.BatchNorm2d:
                setattr(parent, name, GlobalBatchNorm.from_batch_norm(layer))


class GlobalBatchDropout(nn.Dropout):
    """Dropout whose mask is a slice of the global batch's: the rows from `first` on, of `batch`."""

    def __init__(self, p: float, first: int, batch: int) -> None:
        super().__init__(p)
        self.first, self.batch = first, batch

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        draws = torch.rand(max(self.batch, self.first + len(x)), *x.shape[1:], device=x.device)
        mask = draws[self.first : self.first + len(x)] >= self.p
        return x * mask / (1 - self.p)


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch norm over the rows of all ranks, whose counts may differ. `torch.nn.SyncBatchNorm` is for GPUs only."""

    @staticmethod
    def from_batch_norm(norm: nn.BatchNorm2d) -> GlobalBatchNorm:
        """Return a layer that shares the parameters and buffers of `norm`."""
        layer = GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        layer.weight, layer.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(layer, name, buffer)
        return layer.train(norm.training)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_NCHW)
        with torch.no_grad():
            mean_C, variance_C, count = global_batch_statistics(x_NCHW)
            if self.running_mean is not None and self.running_var is not None:
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean_C, momentum)
                self.running_var.lerp_(variance_C * (count / (count - 1)), momentum)
        out: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]
            x_NCHW, self.weight, self.bias, mean_C, variance_C, count, self.eps
        )
        return out


def global_batch_statistics(x_NCHW: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return mean and (biased) variance per channel over the rows of all ranks, and the count of values per channel."""
    variance_C, mean_C = torch.var_mean(x_NCHW.float(), (0, 2, 3), correction=0)
    own = torch.cat([mean_C, variance_C, mean_C.new_tensor([x_NCHW.numel() / x_NCHW.shape[1]])])
    of_ranks = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(of_ranks, own)
    means_RC, variances_RC, counts_R1 = torch.stack(of_ranks).double().split([len(mean_C), len(mean_C), 1], 1)
    weights_R1 = counts_R1 / counts_R1.sum()
    mean_C = (weights_R1 * means_RC).sum(0)
    variance_C = (weights_R1 * (variances_RC + (means_RC - mean_C) ** 2)).sum(0)
    return mean_C.float(), variance_C.float(), counts_R1.sum().item()


class _Normalize(torch.autograd.Function):
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
    def backward(ctx: FunctionCtx, grad_NCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_NCHW, weight_C, mean_C, variance_C = ctx.saved_tensors  # type: ignore[attr-defined]
        count, eps = ctx.count, ctx.eps  # type: ignore[attr-defined]
        inv_std_C = (variance_C + eps).rsqrt()
        normalized_NCHW = (x_NCHW.float() - _per_channel(mean_C)) * _per_channel(inv_std_C)
        grad_fp32_NCHW = grad_NCHW.float()
        own_sums_2C = torch.cat([grad_fp32_NCHW.sum((0, 2, 3)), (grad_fp32_NCHW * normalized_NCHW).sum((0, 2, 3))])
        global_sums_2C = own_sums_2C.clone()
        dist.all_reduce(global_sums_2C)
        bias_grad_C, weight_grad_C = own_sums_2C.chunk(2)
        mean_grad_C, mean_product_C = (global_sums_2C / count).chunk(2)
        centered_NCHW = grad_fp32_NCHW - _per_channel(mean_grad_C) - normalized_NCHW * _per_channel(mean_product_C)
        x_grad_NCHW = (centered_NCHW * _per_channel(weight_C * inv_std_C)).to(x_NCHW.dtype)
        return x_grad_NCHW, weight_grad_C, bias_grad_C, None, None, None, None


def _per_channel(values_C: Tensor) -> Tensor:
    return values_C.view(1, -1, 1, 1)

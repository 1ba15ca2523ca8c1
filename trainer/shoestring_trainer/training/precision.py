# SPDX-License-Identifier: Apache-2.0
"""Half precision as one switch.

fp16 and bf16 are autocast over fp32 weights, fp16 with a loss scale. fp16-true is what airbench and cifar10-fast do:
weights, gradients and activations are fp16, batch norms fp32, and nothing is scaled; a step launches fewer kernels.
"""

from __future__ import annotations

import enum
from pathlib import Path

import torch
from torch import Tensor, nn

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.settings import Settings

_FAST_BF16 = {"avx512_bf16", "amx_bf16"}
_NEEDS_FP32 = ("shampoo", "kfac", "lars")


class Precision(enum.Enum):
    """What the forward and backward pass compute in; batch statistics and the loss stay fp32, and weights mostly."""

    FP16 = "fp16"
    FP16_TRUE = "fp16-true"
    BF16 = "bf16"
    FP32 = "fp32"

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context for a forward pass in this precision."""
        dtype = torch.float16 if self is Precision.FP16 else torch.bfloat16
        return torch.autocast(device.type, dtype=dtype, enabled=self in (Precision.FP16, Precision.BF16))

    def convert(self, model: nn.Module, settings: Settings) -> None:
        """Convert a model's weights in place, before its optimizer is built. Raises UserError for what can't learn so.

        Norms keep fp32: fp16 can't hold their running variances.
        """
        if self is not Precision.FP16_TRUE:
            return
        if not settings.sum_loss:
            raise UserError(
                "fp16-true has no loss scale, and gradients of a mean loss are too small for fp16; use a recipe whose "
                "sum_loss is true, or precision fp16"
            )
        if settings.optimizer in _NEEDS_FP32 or settings.noise_scale_every_steps:
            what = f"optimizer {settings.optimizer}" if settings.optimizer in _NEEDS_FP32 else "noise_scale_every_steps"
            raise UserError(f"fp16-true is too coarse for {what}, which sums squares of gradients; use precision fp16")
        model.half()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.float()

    def cast(self, images_NCHW: Tensor) -> Tensor:
        """Return images as the model takes them."""
        return images_NCHW.half() if self is Precision.FP16_TRUE else images_NCHW


def choose_precision(asked: str, device: torch.device, cpu_info: Path = Path("/proc/cpuinfo")) -> Precision:
    """`asked`, where "auto" is fp16 on a GPU, bf16 on a CPU with instructions for it, and else fp32."""
    if asked != "auto":
        return Precision(asked)
    if device.type == "cuda":
        return Precision.FP16
    return Precision.BF16 if _FAST_BF16 & _cpu_flags(cpu_info) else Precision.FP32


def _cpu_flags(cpu_info: Path) -> set[str]:
    if not cpu_info.exists():
        return set()
    with cpu_info.open() as lines:
        return next((set(line.split()) for line in lines if line.startswith("flags")), set())

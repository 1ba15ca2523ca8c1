# SPDX-License-Identifier: Apache-2.0
"""Half precision as one switch."""

from __future__ import annotations

import enum
from pathlib import Path

import torch

_FAST_BF16 = {"avx512_bf16", "amx_bf16"}


class Precision(enum.Enum):
    """What the forward and backward pass compute in; weights, batch statistics and the loss stay fp32."""

    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context for a forward pass in this precision."""
        dtype = torch.float16 if self is Precision.FP16 else torch.bfloat16
        return torch.autocast(device.type, dtype=dtype, enabled=self is not Precision.FP32)


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

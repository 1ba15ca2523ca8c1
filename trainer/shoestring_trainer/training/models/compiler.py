# SPDX-License-Identifier: Apache-2.0
"""torch.compile, where a recipe asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from shoestring_trainer.training.lazy_dynamo import restore_dynamo

COMPILED_SIZES = 64
"""How many sizes of input are compiled at most. PyTorch's own limit is 8; it runs further ones without compiling."""


def compiled(model: nn.Module, mode: str, backend: str | Callable[..., Any] = "inductor") -> nn.Module:
    """`model`, run by torch.compile in one of its modes ("reduce-overhead" and "max-autotune" use CUDA graphs); "none":
    as it is.

    It compiles once for each size of batch and images it meets, so once per phase of a run; what it has compiled
    stays in torch's cache on this machine's disk for the next start.
    """
    if mode == "none":
        return model
    restore_dynamo()
    torch._dynamo.config.recompile_limit = COMPILED_SIZES
    return cast(nn.Module, torch.compile(model, backend=backend, mode=mode, dynamic=False))

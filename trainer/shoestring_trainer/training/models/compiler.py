# SPDX-License-Identifier: Apache-2.0
"""torch.compile, where a recipe asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from shoestring_trainer.training.lazy_dynamo import restore_dynamo

COMPILED_SIZES = 64
"""How many sizes of input are compiled at most. PyTorch's own limit is 8; it runs further ones without compiling."""


Computation = TypeVar("Computation", bound=Callable[..., Any])


def compiled(model: Computation, mode: str, backend: str | Callable[..., Any] = "inductor") -> Computation:
    """`model`, a network or a function of tensors, run by torch.compile in one of its modes; "none": as it is.

    "reduce-overhead" and "max-autotune" use CUDA graphs.

    It compiles once for each size of batch and images it meets, so once per phase of a run; what it has compiled
    stays in torch's cache on this machine's disk for the next start.
    """
    if mode == "none":
        return model
    restore_dynamo()
    torch._dynamo.config.recompile_limit = COMPILED_SIZES
    return cast(Computation, torch.compile(model, backend=backend, mode=mode, dynamic=False))

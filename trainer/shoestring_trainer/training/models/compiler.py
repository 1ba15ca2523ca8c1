# SPDX-License-Identifier: Apache-2.0
"""torch.compile where a recipe asks for it; else its machinery is kept out of the start.

Building a DDP model or an optimizer imports `torch._dynamo` only to learn that nothing is being compiled. That import
costs a rank more than a second of CPU, and ranks that share cores wait for each other. A stand-in answers
the few questions that eager training asks; the first other use puts the real package in its place.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

NAME = "torch._dynamo"


def compiled(model: nn.Module, mode: str, backend: str | Callable[..., Any] = "inductor") -> nn.Module:
    """`model`, run by torch.compile in one of its modes ("reduce-overhead" and "max-autotune" use CUDA graphs); "none":
    as it is.

    It compiles once for each size of batch and images it meets, so once per phase of a run; what it has compiled
    stays in torch's cache on this machine's disk for the next start.
    """
    if mode == "none":
        return model
    restore_compiler()
    return cast(nn.Module, torch.compile(model, backend=backend, mode=mode, dynamic=False))


def defer_compiler() -> None:
    """Let eager training start without torch._dynamo; no effect if that is imported already."""
    if NAME not in sys.modules:
        stand_in = _StandIn(NAME)
        sys.modules[NAME] = stand_in
        torch._dynamo = stand_in


def restore_compiler() -> None:
    """Forget the stand-in: the next import of torch._dynamo gets the real package."""
    if isinstance(sys.modules.get(NAME), _StandIn):
        del sys.modules[NAME]
        del torch._dynamo


class _StandIn(ModuleType):
    utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")

    @staticmethod
    def disable(function: Any, *_: Any, **__: Any) -> Any:
        return function

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        return None

    def __getattr__(self, attribute: str) -> Any:
        restore_compiler()
        return getattr(importlib.import_module(NAME), attribute)

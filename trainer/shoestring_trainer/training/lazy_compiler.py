# SPDX-License-Identifier: Apache-2.0
"""Keeps torch.compile's machinery out of a start that never compiles.

Building a DDP model or an optimizer imports `torch._dynamo` only to learn that nothing is being compiled. That import
costs a rank more than a second of CPU, and ranks that share cores wait for each other. A stand-in answers
the few questions that eager training asks; the first other use puts the real package in its place.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

NAME = "torch._dynamo"


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

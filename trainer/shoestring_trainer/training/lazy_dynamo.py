# SPDX-License-Identifier: Apache-2.0
"""Train eagerly without importing torch._dynamo, the compiler's front end.

DDP and the optimizers import it only to learn that nothing is being compiled. That takes as long as importing PyTorch
itself (1.4 s of CPU and 77 MB with torch 2.13), before the first step of each rank. A stand-in answers what eager
training asks; any other attribute replaces it with the real package.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import torch

NAME = "torch._dynamo"


def defer_dynamo() -> None:
    """Put the stand-in where torch looks for torch._dynamo; no effect if the real package has been imported."""
    if NAME not in sys.modules:
        sys.modules[NAME] = torch._dynamo = _stand_in()


def restore_dynamo() -> None:
    """Remove the stand-in, so that the next import gets the real package.

    Call it before importing or calling what imports submodules of torch._dynamo: torch.export, torch.onnx, torchvision,
    hooks. An attribute of the stand-in does it by itself.
    """
    if isinstance(sys.modules.get(NAME), _StandIn):
        del sys.modules[NAME]
        del torch._dynamo


class _StandIn(ModuleType):
    """A module with a few functions; any other attribute comes from the real one."""

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__(name)
        self.__dict__.update(attributes)

    def __getattr__(self, attribute: str) -> Any:
        restore_dynamo()
        return getattr(importlib.import_module(self.__name__), attribute)


def _stand_in() -> _StandIn:
    return _StandIn(
        NAME,
        disable=lambda function, *_, **__: function,  # wraps methods of the optimizers
        graph_break=lambda *_, **__: None,  # each step of an optimizer
        trace_rules=_StandIn(f"{NAME}.trace_rules", clear_lru_cache=lambda: None),  # init_process_group
        utils=_StandIn(f"{NAME}.utils", get_optimize_ddp_mode=lambda: "ddp_optimizer"),  # DistributedDataParallel
    )

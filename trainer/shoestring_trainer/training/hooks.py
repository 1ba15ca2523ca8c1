# SPDX-License-Identifier: Apache-2.0
"""A user's own functions at the joints of the training loop, from a file that the parameter `hooks` names.

    on_start(run)                      before the first step of this process
    on_batch(run, pictures, labels)    may return other pictures and labels (numbers, or shares of classes)
    on_gradients(run)                  gradients are whole and unscaled, the optimizer's step is next
    on_step(run)                       what it puts into run.values is reported with the step
    on_scored(run)                     the held-out pictures were measured; run.values has the scores
    on_end(run)                        after the last measurement

Every rank calls them. What they draw at random should depend on run.step alone, so that a resumed run is the same run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.settings import Settings

HOOKS = ("on_start", "on_batch", "on_gradients", "on_step", "on_scored", "on_end")


@dataclass
class Run:
    """What a hook may look at and change. `step` counts the steps done; `values` are those of the newest one."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    settings: Settings
    rank: int
    step: int
    values: dict[str, float] = field(default_factory=dict)


class Hooks:
    """The functions of a user's file, by joint; a joint without one costs a look into a dict."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        self._functions = functions

    def __contains__(self, joint: str) -> bool:
        return joint in self._functions

    def call(self, joint: str, run: Run) -> None:
        """Call the joint's function, if there is one."""
        if joint in self._functions:
            self._functions[joint](run)

    def batch(self, run: Run, pictures_NCHW: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """What `on_batch` makes of a batch; the batch itself without one, or if it returns nothing."""
        if "on_batch" not in self._functions:
            return pictures_NCHW, labels_N
        made = self._functions["on_batch"](run, pictures_NCHW, labels_N)
        if made is None:
            return pictures_NCHW, labels_N
        if not (isinstance(made, tuple) and len(made) == 2 and all(isinstance(part, Tensor) for part in made)):
            raise UserError("the hook on_batch must return pictures and labels, two tensors, or nothing")
        return made


def load_hooks(path: str) -> Hooks:
    """The hooks of a Python file; none for "". Raises UserError if it can't be run or has a hook of unknown name."""
    if not path:
        return Hooks({})
    if not Path(path).is_file():
        raise UserError(f"there is no file {path} for hooks on this machine; give a path that all machines have")
    spec = importlib.util.spec_from_file_location("shoestring_hooks", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file; the hooks need one, ending in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"the hooks in {path} can't be loaded ({type(error).__name__}: {error}); repair it") from error
    found = {name: value for name, value in vars(module).items() if name.startswith("on_") and callable(value)}
    if unknown := sorted(set(found) - set(HOOKS)):
        raise UserError(f"{path} has {unknown[0]}, which no joint calls; there are {', '.join(HOOKS)}")
    if not found:
        raise UserError(f"{path} has no hook; there are {', '.join(HOOKS)}")
    return Hooks(found)

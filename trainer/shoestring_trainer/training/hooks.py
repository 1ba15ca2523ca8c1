# SPDX-License-Identifier: Apache-2.0
"""A user's own functions, called by the training loop, from the file that the parameter `hooks_file` names.

    on_train_begin(context)             before the first step of this process
    on_batch(context, images, labels)   may return other images and labels (class indices or probabilities)
    on_pre_optimizer_step(context)      gradients are complete and unscaled; the optimizer's step is next
    on_step_end(context)                what it puts into context.metrics is reported with the step
    on_evaluate(context)                after an evaluation; context.metrics has its metrics
    on_train_end(context)               after the final evaluation

Every rank calls them. Their random numbers should depend on context.step alone, so that a resumed run is the same run.
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

HOOKS = ("on_train_begin", "on_batch", "on_pre_optimizer_step", "on_step_end", "on_evaluate", "on_train_end")


@dataclass
class HookContext:
    """What a hook may read and change. `step` counts the completed steps; `metrics` are those of the latest one."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    settings: Settings
    rank: int
    step: int
    metrics: dict[str, float] = field(default_factory=dict)


class Hooks:
    """The functions of a user's file, by hook; a hook without one costs a dict lookup."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        self._functions = functions

    def __contains__(self, hook: str) -> bool:
        return hook in self._functions

    def call(self, hook: str, context: HookContext) -> None:
        """Call the hook's function, if there is one."""
        if hook in self._functions:
            self._functions[hook](context)

    def on_batch(self, context: HookContext, images_NCHW: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `on_batch` makes of a batch; the batch itself without one, or if it returns nothing."""
        if "on_batch" not in self._functions:
            return images_NCHW, labels_N
        returned = self._functions["on_batch"](context, images_NCHW, labels_N)
        if returned is None:
            return images_NCHW, labels_N
        if not (isinstance(returned, tuple) and len(returned) == 2 and all(isinstance(x, Tensor) for x in returned)):
            raise UserError("the hook on_batch must return images and labels, two tensors, or nothing")
        return returned


def load_hooks(path: str) -> Hooks:
    """Return the hooks of a Python file; none for "". Raises UserError if it can't be run or has an unknown hook."""
    if not path:
        return Hooks({})
    if not Path(path).is_file():
        raise UserError(f"there is no file {path} for hooks on this machine; give a path that all machines have")
    spec = importlib.util.spec_from_file_location("shoestring_hooks", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file; hooks need one, ending in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"the hooks in {path} can't be loaded ({type(error).__name__}: {error}); fix the file"
        ) from error
    functions = {name: value for name, value in vars(module).items() if name.startswith("on_") and callable(value)}
    if unknown := sorted(set(functions) - set(HOOKS)):
        raise UserError(f"{path} has {unknown[0]}, which is no hook; hooks are {', '.join(HOOKS)}")
    if not functions:
        raise UserError(f"{path} has no hook; hooks are {', '.join(HOOKS)}")
    return Hooks(functions)

# SPDX-License-Identifier: Apache-2.0
"""A user's own functions, called by the training loop, from the file that the parameter `hooks_file` names.

    on_train_begin(context)             before the first step of this process
    on_batch(context, images, labels)   may return other images and labels (class indices or probabilities)
    on_pre_optimizer_step(context)      gradients are complete and unscaled; the optimizer's step is next
    on_step_end(context)                what it puts into context.metrics is reported with the step
    on_evaluate(context)                after an evaluation; context.metrics has its metrics
    on_train_end(context)               after the final evaluation

Every rank calls them. Their random numbers should depend on context.step alone, so that a resumed run is the same run.

Whatever a hook raises, returns or reports that can't be used ends the job as an error of that hook, with its file and
line. The trainer's own metrics are reported whatever a hook does to them.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from shoestring_core.wording.units import counted
from torch import Tensor, nn

from shoestring_trainer.terminal import say
from shoestring_trainer.training.data.confined_files import read_hooks
from shoestring_trainer.training.errors import HookError, UserError, first_line, is_lost_peer
from shoestring_trainer.training.lazy_dynamo import restore_dynamo
from shoestring_trainer.training.settings import Settings

PARAMETERS = {
    "on_train_begin": 1, "on_batch": 3, "on_pre_optimizer_step": 1, "on_step_end": 1, "on_evaluate": 1,
    "on_train_end": 1,
}  # fmt: skip
HOOKS = tuple(PARAMETERS)
MAX_VALUES, MAX_NAME_LENGTH = 500, 200
"""Of a hook: values that are reported with a step, and characters in the name of one. An agent takes 1,000 and 250."""
_MODULE = "shoestring_hooks"
_NAMED = 3


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
    """The functions of a user's file, by hook; a hook without one costs a dict lookup.

    file       that they are in
    classes    how many there are; None: labels are not compared with it
    has_peers  whether there are other ranks: one that is lost while a hook waits for it is not the hook's error
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        file: str = "hooks",
        *,
        classes: int | None = None,
        has_peers: bool = False,
    ) -> None:
        self._functions, self._file, self._classes, self._has_peers = functions, file, classes, has_peers
        self._surplus_named = False

    def __bool__(self) -> bool:
        return bool(self._functions)

    def __contains__(self, hook: str) -> bool:
        return hook in self._functions

    def call(self, hook: str, context: HookContext) -> None:
        """Call the hook's function, if there is one, and take what it added to the metrics."""
        if hook not in self._functions:
            return
        metrics, ours = context.metrics, dict(context.metrics)
        self._run(hook, context)
        added = self._added_values(hook, context.metrics, ours)
        metrics.clear()
        metrics.update(ours | added)
        context.metrics = metrics

    def on_batch(self, context: HookContext, images_NCHW: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `on_batch` makes of a batch; the batch itself without one, or if it returns nothing."""
        if "on_batch" not in self._functions:
            return images_NCHW, labels_N
        returned = self._run("on_batch", context, images_NCHW, labels_N)
        if returned is None:
            returned = images_NCHW, labels_N  # it may have changed them in place
        if not (isinstance(returned, tuple) and len(returned) == 2 and all(isinstance(x, Tensor) for x in returned)):
            raise self._error("on_batch", "must return images and labels, two tensors, or nothing")
        images, labels = returned
        if len(images.shape) != images_NCHW.ndim or images.shape[1:2] != images_NCHW.shape[1:2] or not images.numel():
            shapes = f"{tuple(images.shape)}; it was given {tuple(images_NCHW.shape)}"
            raise self._error("on_batch", f"returned images of shape {shapes}")
        self._check_labels(labels, len(images))
        return images.to(images_NCHW), labels.to(labels_N.device if labels.is_floating_point() else labels_N)

    def _check_labels(self, labels: Tensor, images: int) -> None:
        as_indices = labels.ndim == 1 and not labels.is_floating_point() and labels.dtype != torch.bool
        as_probabilities = labels.ndim == 2 and labels.is_floating_point()
        if not (as_indices or as_probabilities) or len(labels) != images:
            raise self._error(
                "on_batch",
                f"returned {counted(images, 'image')} with labels of shape {tuple(labels.shape)} and {labels.dtype}; "
                "give a class index (int64) for each, or a row of probabilities",
            )
        if self._classes is None:
            return
        if as_probabilities and labels.shape[1] != self._classes:
            raise self._error(
                "on_batch",
                f"returned probabilities of {counted(labels.shape[1], 'class', 'classes')}; there are {self._classes}",
            )
        if as_indices and not 0 <= int(labels.min()) <= int(labels.max()) < self._classes:
            raise self._error("on_batch", f"returned a label outside 0 to {self._classes - 1}")

    def _run(self, hook: str, *arguments: Any) -> Any:
        try:
            return self._functions[hook](*arguments)
        except BaseException as error:
            if self._has_peers and is_lost_peer(error):
                raise
            if isinstance(error, SystemExit):
                raise self._error(
                    hook, "called sys.exit(); raise an error to end the job, or set a goal to end it early", error
                ) from error
            raise self._error(hook, f"raised {type(error).__name__}: {first_line(error)}", error) from error

    def _added_values(self, hook: str, metrics: object, ours: Mapping[str, float]) -> dict[str, float]:
        """Return what the hook added to the metrics. Raises HookError for what is no number under a name."""
        if not isinstance(metrics, Mapping):
            raise self._error(
                hook, f"set context.metrics to a {type(metrics).__name__}; it is a dict of numbers by name"
            )
        added: dict[str, float] = {}
        surplus = []
        for name, value in metrics.items():
            if name in ours:
                continue
            if not isinstance(name, str) or not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
                raise self._error(
                    hook,
                    f"put {name!r:.80} into context.metrics as a name; names are text of up to {MAX_NAME_LENGTH} "
                    "printable characters",
                )
            number = self._number(hook, name, value)
            if len(added) < MAX_VALUES:
                added[name] = number
            else:
                surplus.append(name)
        if surplus and not self._surplus_named:
            self._surplus_named = True
            more = f" and {len(surplus) - _NAMED} more" if len(surplus) > _NAMED else ""
            say(
                f"the hook {hook} in {self._file} reports {len(added) + len(surplus)} values with a step; the first "
                f"{MAX_VALUES} are kept, and left out are {', '.join(surplus[:_NAMED])}{more}"
            )
        return added

    def _number(self, hook: str, name: str, value: Any) -> float:
        try:
            if isinstance(value, str | bytes):
                raise TypeError("text")
            return float(value)
        except Exception as error:
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            raise self._error(
                hook, f"put a {type(value).__name__}{shape} into context.metrics[{name!r}]; it takes one number"
            ) from error

    def _error(self, hook: str, what: str, error: BaseException | None = None) -> HookError:
        return HookError(f"the hook {hook} ({self._file}, line {self._line(hook, error)}) {what}")

    def _line(self, hook: str, error: BaseException | None) -> int:
        """Return the line in the user's file at which `error` was raised; else the function's first."""
        frames = traceback.extract_tb(error.__traceback__) if error else []
        lines = [frame.lineno for frame in frames if frame.filename == self._file and frame.lineno]
        code = getattr(inspect.unwrap(self._functions[hook]), "__code__", None)
        return lines[-1] if lines else getattr(code, "co_firstlineno", 1)


def load_hooks(path: str, *, classes: int | None = None, has_peers: bool = False) -> Hooks:
    """Return the hooks of a Python file; none for "". Raises UserError if it can't be run or has an unknown hook."""
    if not path:
        return Hooks({})
    try:
        source = read_hooks(Path(path))
    except OSError as error:
        raise UserError(
            f"the hooks in {path} can't be read ({error.strerror}); give a path that all machines have"
        ) from error
    module = ModuleType(_MODULE)
    module.__file__ = path
    sys.modules[_MODULE] = module  # dataclasses look their module up there
    try:
        restore_dynamo()
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))  # noqa: S102 - what a hooks file is for
    except BaseException as error:
        del sys.modules[_MODULE]
        raise UserError(
            f"the hooks in {path} can't be loaded ({type(error).__name__}: {first_line(error)}); fix the file"
        ) from error
    functions = {name: value for name, value in vars(module).items() if name.startswith("on_") and callable(value)}
    if unknown := sorted(set(functions) - set(HOOKS)):
        raise UserError(f"{path} has {unknown[0]}, which is no hook; hooks are {', '.join(HOOKS)}")
    if not functions:
        raise UserError(f"{path} has no hook; hooks are {', '.join(HOOKS)}")
    for name, function in functions.items():
        _check_function(name, function, path)
    return Hooks(functions, path, classes=classes, has_peers=has_peers)


def _check_function(name: str, function: Callable[..., Any], path: str) -> None:
    """Raise UserError for a hook that can't be called, or whose call would do nothing."""
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise UserError(f"{name} in {path} is asynchronous or a generator, so calling it does nothing; use a plain def")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind(*range(PARAMETERS[name]))
    except TypeError:
        parameters = "context, images, labels" if name == "on_batch" else "context"
        raise UserError(f"{name} in {path} takes {signature}; it is called with ({parameters})") from None

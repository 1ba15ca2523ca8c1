# SPDX-License-Identifier: Apache-2.0
"""What became of each training step: read from the device some steps later, so that the host never waits for it.

The lag is a fixed number, so that all ranks act in the same step on what they read. It is 0 before an evaluation, a new
phase and the end, and on a CPU, where nothing runs ahead. A checkpoint, which only rank 0 knows is due, is preceded by
a report of all steps, on which nobody acts yet.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from time import monotonic

import torch

from shoestring_trainer.run_files import MAX_STOP_S
from shoestring_trainer.training.errors import NonFiniteError
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.results.run_recorder import RunRecorder
from shoestring_trainer.training.task import StepCounter
from shoestring_trainer.training.upload import Download

LAG = {"cpu": 0, "cuda": 2}
"""Steps between a step and the reading of its result, by kind of device."""
MIN_LOSS_SCALE = 2.0**-14
"""A loss scale below this has been halved thirty times without one finite gradient: the loss itself is not finite."""


@dataclass(frozen=True)
class StepResult:
    """The result of one step, the same on all ranks.

    loss            mean over the batch; NaN if the step was skipped
    stop_requested  some rank was asked to stop
    scale           loss scale after the step; None without one
    overflowed      in fp16: some gradient was not finite, and the optimizer step was skipped
    diverged        the loss is not finite; in fp16: gradients still overflow at the lowest loss scale
    """

    loss: float
    stop_requested: bool
    scale: float | None
    overflowed: bool
    diverged: bool


@dataclass
class CompletedStep:
    """A step whose work has been given to the device.

    numbers  the loss, summed over the batch, and how many ranks were asked to stop; with a loss scale, that before and
             after the step
    skipped  its batch was not trained on
    at       when it was completed, with its evaluation, in seconds since the epoch
    metrics  what is reported with it beside the loss
    """

    step: int
    epoch: float
    batch_size: int
    numbers: Download
    skipped: bool
    at: float
    metrics: dict[str, float] = field(default_factory=dict)
    reported: bool = False
    told: bool = False
    _result: StepResult | None = None

    def read(self) -> StepResult:
        """Return the result; wait for the device if it is not there yet."""
        if self._result is None:
            loss_sum, stop_requests, *scales = self.numbers.read()
            loss = loss_sum / self.batch_size  # on the host: on the device this would be one more launch
            overflowed = bool(scales) and scales[1] < scales[0]
            broken = scales[1] < MIN_LOSS_SCALE if scales else not math.isfinite(loss)
            self._result = StepResult(
                loss, stop_requests > 0, scales[1] if scales else None, overflowed, broken and not self.skipped
            )
            self.metrics = {"train/loss": loss, **self.metrics}
        return self._result


class StepResults:
    """The steps whose results have not been acted upon.

    stop_requested  some rank was asked to stop, in a step that has been acted upon
    """

    def __init__(self, recorder: RunRecorder, precision: Precision, start_step: int) -> None:
        self._recorder, self._precision = recorder, precision
        self._steps: deque[CompletedStep] = deque()
        self._last_finite_step = start_step
        self.stop_requested = False

    def add(self, completed: CompletedStep) -> None:
        """Add the latest step."""
        self._steps.append(completed)

    def settle(self, lag: int) -> None:
        """Report all but the latest `lag` steps and act on them. Raises NonFiniteError if one of them diverged."""
        while len(self._steps) > lag:
            completed = self._steps.popleft()
            self._report(completed)
            result = completed.read()
            if result.diverged:
                self._recorder.wait_for_checkpoint()  # this checkpoint is from before, and good to resume from
                message = describe_divergence(completed.step, result.loss, self._precision)
                raise NonFiniteError(message, since=self._last_finite_step + 1)
            if not result.overflowed:
                self._last_finite_step = completed.step
            self.stop_requested |= result.stop_requested

    def report_before_save(self) -> bool:
        """Report all steps; return whether the weights after them may be saved."""
        for completed in self._steps:
            self._report(completed)
        return not any(completed.read().diverged for completed in self._steps)

    def log_events(self, completed: CompletedStep) -> None:
        """Report what is to be said of a step beside its metrics, once."""
        result = completed.read()
        if completed.told:
            return
        completed.told = True
        if completed.skipped:
            self._recorder.log_event("skipped", step=completed.step, samples=completed.batch_size)
        elif not math.isfinite(result.loss):
            self._recorder.note_broken_loss(completed.step)
        if result.overflowed:
            self._recorder.log_event("gradient_overflow", step=completed.step, scale=result.scale)

    def _report(self, completed: CompletedStep) -> None:
        if not completed.reported:
            completed.reported = True
            self.log_events(completed)
            self._recorder.log_step(completed.step, completed.epoch, completed.metrics, at=completed.at)


class Pace:
    """How long the steps of this process take, and the batches of its evaluations."""

    def __init__(self, lag: int, counter: StepCounter) -> None:
        self._lag, self._counter, self._began = lag, counter, monotonic()
        self._longest_s = self._evaluation_s = self._evaluation_batch_s = 0.0

    @property
    def train_s(self) -> float:
        """Seconds since it began, without evaluations."""
        return monotonic() - self._began - self._evaluation_s

    def add_step(self, seconds: float) -> None:
        """Add a step that did what steps do: it compiled and warmed up nothing, and had no evaluation."""
        self._longest_s = max(self._longest_s, seconds)

    def add_evaluation(self, seconds: float, batches: int) -> None:
        """Add an evaluation in so many batches."""
        self._evaluation_s += seconds
        self._evaluation_batch_s = seconds / batches

    def stop_s(self) -> float:
        """Return how long a request to stop may wait for its checkpoint, by the longest step since the last one."""
        return seconds_to_stop(
            self._lag, steps=self._counter.step - self._counter.start_step, seconds=self.train_s,
            longest_s=self._longest_s, evaluation_batch_s=self._evaluation_batch_s,
        )  # fmt: skip

    def forget_longest(self) -> None:
        """Begin anew with the longest step: a checkpoint was saved."""
        self._longest_s = 0.0


def result_lag(device: torch.device, *, hooks: bool) -> int:
    """Return how many steps later results are read. Hooks see a step's metrics as soon as it ends."""
    return 0 if hooks else LAG[device.type]


def seconds_to_stop(
    lag: int, *, steps: int, seconds: float, longest_s: float = 0.0, evaluation_batch_s: float = 0.0
) -> float:
    """Return how long a request to stop may wait for its checkpoint, at the pace of so many steps in so many seconds.

    The device may be `lag` steps behind. A step that has begun doesn't carry the request to the other ranks, the next
    one does; and `lag` steps later all ranks have read it. One of these may be as long as the longest, such as one in
    which the optimizer computes preconditioners. An evaluation is left as many batches later.
    """
    mean_s = seconds / steps
    waits = (2 * lag + 1) * mean_s + max(mean_s, longest_s), (2 * lag + 2) * evaluation_batch_s
    return min(max(waits), MAX_STOP_S)


def describe_divergence(step: int, loss: float, precision: Precision) -> str:
    """Return the user's error message for a loss or gradients that are not finite."""
    if precision is Precision.FP16:
        return f"no finite gradient in fp16 up to step {step}, however small the loss scale; try bf16, or lower lr"
    return f"the loss of step {step} is {loss}; lower lr, or look for broken images or labels"

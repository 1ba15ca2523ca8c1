# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind as it goes: events, a line for each step, progress for people, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoestring_core.results import EVALUATION_S

from shoestring_trainer.training.checkpoint.state import CheckpointWriter, State
from shoestring_trainer.training.results.progress import Progress
from shoestring_trainer.training.results.reports import Reports
from shoestring_trainer.training.task import Task


class Record:
    """Kept by rank 0. On the other ranks every call does nothing."""

    def __init__(self, task: Task, state: State, total: int, *, rank: int) -> None:
        self.kept = rank == 0
        if self.kept:
            self._report = Reports(task.folder, go_on=task.resume is not None)
            self._saver = CheckpointWriter(task, state, self._report)
            self._progress = Progress(total)

    def event(self, name: str, **facts: Any) -> None:
        """Something happened."""
        if self.kept:
            self._report.event(name, **facts)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def step(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Step `step` is done."""
        if self.kept and (self._report.metrics(step, epoch, values) or EVALUATION_S in values):
            self._progress.show(step, epoch, values)

    def flush(self) -> None:
        """Let everyone see what was told; for before a longer pause."""
        if self.kept:
            self._report.flush()

    def save_if_due(self, step: int) -> None:
        """Begin a periodic checkpoint, if it is time."""
        if self.kept:
            self._saver.save_if_due(step)

    def save_on_order(self, step: int) -> None:
        """Return once a checkpoint of this step is durable."""
        if self.kept:
            self._saver.save_on_order(step)

    def finish_writing(self) -> None:
        """Return once the checkpoint in the making, if there is one, is durable."""
        if self.kept:
            self._saver.finish_writing()

    def last_step(self, step: int, epoch: float, values: Mapping[str, float], scores: Mapping[str, float]) -> None:
        """Step `step` is done and was the last; the run's result has these scores."""
        if self.kept:
            self._report.metrics(step, epoch, values)
            self._progress.finish(step, epoch, scores)

    def save_final(self, step: int, artifacts: Mapping[str, bytes], result: Mapping[str, Any]) -> None:
        """Return once the last checkpoint, the artifacts and the result are durable."""
        if self.kept:
            self._saver.save_final(step, artifacts, result)

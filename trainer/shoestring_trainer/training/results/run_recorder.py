# SPDX-License-Identifier: Apache-2.0
"""What a run reports: events, a line of metrics for each step, progress for people, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoestring_core.results import EVALUATION_S

from shoestring_trainer.training.checkpoint.state import TrainingState
from shoestring_trainer.training.checkpoint.writer import CheckpointWriter
from shoestring_trainer.training.results.jsonl_writer import JsonlWriter
from shoestring_trainer.training.results.progress import ProgressPrinter
from shoestring_trainer.training.task import LocalTask


class RunRecorder:
    """Reports on rank 0. On the other ranks every call does nothing."""

    def __init__(self, task: LocalTask, state: TrainingState, total_steps: int, *, rank: int) -> None:
        self.enabled = rank == 0
        if self.enabled:
            self._writer = JsonlWriter(task.folder, append=task.resume is not None)
            self._checkpoints = CheckpointWriter(task, state, self._writer)
            self._progress = ProgressPrinter(total_steps)

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def log_event(self, name: str, **data: Any) -> None:
        """Write an event."""
        if self.enabled:
            self._writer.write_event(name, **data)

    def log_step(self, step: int, epoch: float, metrics: Mapping[str, float], *, at: float) -> None:
        """Write the metrics of step `step`, completed at the time `at`."""
        if self.enabled and (self._writer.write_metrics(step, epoch, metrics, at=at) or EVALUATION_S in metrics):
            self._progress.show(step, epoch, metrics)

    def log_last_step(
        self, step: int, epoch: float, metrics: Mapping[str, float], final_metrics: Mapping[str, float], *, at: float
    ) -> None:
        """Write the metrics of the last step; `final_metrics` are those of the run's result."""
        if self.enabled:
            self._writer.write_metrics(step, epoch, metrics, at=at)
            self._progress.finish(step, epoch, final_metrics)

    def note_broken_loss(self, step: int) -> None:
        """Note that the loss of a step is not finite: it may have left such numbers behind, though training goes on."""
        if self.enabled and not self._checkpoints.broken_at:
            self._checkpoints.broken_at = step

    def flush(self) -> None:
        """Write out buffered metrics; for before a longer pause."""
        if self.enabled:
            self._writer.flush()

    def save_is_due(self, step: int) -> bool:
        """Return whether it is time for a periodic checkpoint."""
        return self.enabled and self._checkpoints.is_due(step)

    def save(self, step: int, *, stop_s: float) -> None:
        """Begin a periodic checkpoint. `stop_s`: how long a request to stop may wait for one."""
        if self.enabled:
            self._checkpoints.save(step, stop_s)

    def hold(self, step: int) -> None:
        """Keep the state as it is now, for `save_and_wait`: what follows changes it for good."""
        if self.enabled:
            self._checkpoints.hold(step)

    def save_and_wait(self, step: int, *, stop_s: float) -> None:
        """Return once a checkpoint of this step is durable."""
        if self.enabled:
            self._checkpoints.save_and_wait(step, stop_s)

    def save_final(self, step: int, artifacts: Mapping[str, bytes], result: Mapping[str, Any]) -> None:
        """Return once the final checkpoint, the artifacts and the result are durable."""
        if self.enabled:
            self._checkpoints.save_final(step, artifacts, result)

    def wait_for_checkpoint(self) -> None:
        """Return once the checkpoint that is being written, if there is one, is durable."""
        if self.enabled:
            self._checkpoints.wait()

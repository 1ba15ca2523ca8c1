# SPDX-License-Identifier: Apache-2.0
"""Writes the checkpoints of a run: when one is due, in which thread, and which files stay."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from shoestring_trainer.run_files import CheckpointEvent, CheckpointReason
from shoestring_trainer.training.checkpoint.files import list_checkpoint_files, write_checkpoint
from shoestring_trainer.training.checkpoint.state import TrainingState, pack_snapshot
from shoestring_trainer.training.errors import NonFiniteError
from shoestring_trainer.training.results.jsonl_writer import JsonlWriter
from shoestring_trainer.training.task import LocalTask

MAX_LOCAL_CHECKPOINTS = 8
"""Checkpoints that stay in the run's folder, as uploads may be slow; older ones are deleted, uploaded or not."""
FIRST_LEAD = 0.1
"""The part of the interval by which a periodic checkpoint is early, until one has been stored."""


class CheckpointWriter:
    """Writes checkpoints on rank 0: periodic ones in the background, others before the call returns.

    broken_at  the first step since the last checkpoint whose loss was not finite, though fp16 went on; 0: none
    """

    def __init__(self, task: LocalTask, state: TrainingState, writer: JsonlWriter) -> None:
        self._task, self._state, self._writer = task, state, writer
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._saved_at = monotonic()
        self._storing_s: float | None = None
        """How long it took from the begin of a periodic checkpoint until the service had it."""
        self._unstored: Path | None = None
        self._held: dict[str, Any] | None = None
        self.broken_at = 0
        self._local_files = list_checkpoint_files(task.folder)

    def is_due(self, step: int) -> bool:
        """Return whether it is time for a periodic checkpoint, by steps, or by time if none is being written.

        With a machine is lost what came after the last checkpoint that the service has, at most the interval. So the
        next one begins earlier by the time that it takes to be stored: twice the last one's, as it may take longer.
        """
        policy = self._task.checkpoint
        if policy.every_steps is not None and step % policy.every_steps == 0:
            return True
        if policy.every_s is None or (self._pending and not self._pending.done()):
            return False
        since_s = monotonic() - self._saved_at
        if self._unstored and not self._unstored.exists():  # the agent moves it away once the service has it
            self._storing_s, self._unstored = since_s, None
        lead_s = policy.every_s * FIRST_LEAD if self._storing_s is None else 2 * self._storing_s
        return since_s >= policy.every_s - min(lead_s, policy.every_s / 2)

    def save(self, step: int, stop_s: float = 0.0) -> None:
        """Begin a periodic checkpoint. `stop_s`: how long a request to stop may wait for one."""
        self.wait()
        self._saved_at, self._unstored = monotonic(), None
        snapshot, lines = self._require_finite(self._state.snapshot(step), step), self._writer.lines
        self._pending = self._executor.submit(self._write, step, snapshot, "periodic", lines, {}, {}, stop_s)

    def hold(self, step: int) -> None:
        """Keep the state as it is now, for `save_and_wait`: what follows changes it for good."""
        self._held = self._state.snapshot(step)

    def save_and_wait(self, step: int, stop_s: float = 0.0) -> None:
        """Write a checkpoint on a request to stop, and return once it is durable and its event is written.

        One without the evaluation of its last step counts as that of the step before: the run that resumes from it
        reports the last step, with its evaluation.
        """
        self.wait()
        snapshot = self._require_finite(self._held or self._state.snapshot(step), step)
        reported = step - 1 if self._state.unevaluated else step
        self._write(reported, snapshot, "order", self._writer.lines, {}, {}, stop_s)

    def save_final(self, step: int, artifacts: Mapping[str, bytes], result: Mapping[str, Any]) -> None:
        """Write the final checkpoint, with the job's artifacts as further parts, and the result."""
        self.wait()
        self._held = None
        snapshot = self._require_finite(self._state.snapshot(step), step)
        self._write(step, snapshot, "final", self._writer.lines, artifacts, result)

    def wait(self) -> None:
        """Wait for the checkpoint that is being written. Raises the error of a failed one."""
        if self._pending:
            self._pending.result()
            self._pending = None

    def _require_finite(self, snapshot: dict[str, Any], step: int) -> dict[str, Any]:
        """Return the state to save. Raises NonFiniteError if it isn't finite, so a good checkpoint always remains."""
        for part in ("model", "optimizer", "average"):
            for name, tensor in snapshot.get(part, {}).items():
                if not torch.isfinite(tensor).all():
                    message = f"after step {step} {name} has numbers that are not finite ({part})"
                    if self.broken_at:
                        message += f", as the loss had at step {self.broken_at}"
                    message += "; lower lr, or look for broken images or labels"
                    raise NonFiniteError(message, since=self.broken_at or step)
        self.broken_at = 0
        return snapshot

    def _write(
        self, step: int, snapshot: Mapping[str, Any], reason: CheckpointReason, lines: int,
        artifacts: Mapping[str, bytes], result: Mapping[str, Any], stop_s: float = 0.0,
    ) -> None:  # fmt: skip
        task, began = self._task, monotonic()
        parts = {**pack_snapshot(snapshot), **artifacts}
        data, manifest = write_checkpoint(task.folder, job=task.job, generation=task.generation, step=step, parts=parts)
        saved = CheckpointEvent(
            step=step, data=data, manifest=manifest, reason=reason, final=reason == "final", lines=lines,
            seconds=round(monotonic() - began, 3), stop_s=round(stop_s, 3),
            result=dict(result) if reason == "final" else None,
        )  # fmt: skip
        self._unstored = task.folder / data
        self._writer.write_event("checkpoint", **saved.model_dump(exclude_defaults=True))
        self._local_files = [file for file in self._local_files if file not in (manifest, data)] + [manifest, data]
        while len(self._local_files) > 2 * MAX_LOCAL_CHECKPOINTS:
            (task.folder / self._local_files.pop(0)).unlink(missing_ok=True)

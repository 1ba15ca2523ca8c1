# SPDX-License-Identifier: Apache-2.0
"""The whole state of a run: taken at a step, saved, and put back so that the run goes on bit for bit.

What is not here needs no saving: data order, augmentation and dropout are functions of the seed and the step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoestring_trainer.training.checkpoint.files import (
    pack_tensors,
    read_checkpoint,
    unpack_json,
    unpack_tensors,
    write_checkpoint,
)
from shoestring_trainer.training.errors import DataError, NonFiniteError
from shoestring_trainer.training.optim.weight_average import Average
from shoestring_trainer.training.results.reports import Reports
from shoestring_trainer.training.task import CheckpointFiles, Task

KEPT = 8
"""Checkpoints that stay in the run's folder, so that a slow upload has time; older ones go, shipped or not."""

Reason = Literal["periodic", "order", "final"]


@dataclass(frozen=True)
class State:
    """The living objects whose content is the run's state.

    identity  what a checkpoint must agree with to be this run's: recipe, parameters, seed, data
    skip      steps whose batches are passed over: the job's own, and those of the checkpoint it goes on from
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    identity: Mapping[str, Any]
    average: Average | None = None
    skip: set[int] = field(default_factory=set)

    def snapshot(self, step: int) -> dict[str, Any]:
        """A copy, on the CPU, that later steps do not touch."""
        kinds, tensors = _optimizer_tensors(self.model, self.optimizer)
        return {
            "model": {name: _copy(tensor) for name, tensor in self.model.state_dict().items()},
            "optimizer": {name: _copy(tensor) for name, tensor in tensors.items()},
            **(
                {"average": {name: _copy(tensor) for name, tensor in self.average.tensors.items()}}
                if self.average
                else {}
            ),
            "state": {
                **self.identity,
                "step": step,
                "optimizer_state": kinds,
                "scaler": self.scaler.state_dict(),
                **({"skip": sorted(self.skip)} if self.skip else {}),
            },
        }


def restore(state: State, saved: CheckpointFiles) -> int:
    """Put a checkpoint into `state` and return its step.

    Raises DataError, naming the file, if it is damaged, lacks anything, or belongs to another run.
    """
    parts = read_checkpoint(saved.data, saved.manifest)
    facts = unpack_json(parts, "state.json", saved.data)
    _check_identity(facts, state, saved)
    _load_tensors(state.model.state_dict(), parts, "model.safetensors", saved)
    if state.average:
        _load_tensors(state.average.tensors, parts, "average.safetensors", saved)
    _load_optimizer(state, facts["optimizer_state"], unpack_tensors(parts, "optimizer.safetensors", saved.data), saved)
    if state.scaler.is_enabled():
        if set(facts["scaler"]) != set(state.scaler.state_dict()):
            raise DataError(
                f"the checkpoint {saved.data} has no whole loss scale; resume it in its own precision, not in fp16"
            )
        state.scaler.load_state_dict(facts["scaler"])
    state.skip.update(facts.get("skip", ()))
    step = facts["step"]
    if not isinstance(step, int) or step < 0:
        raise DataError(f"the checkpoint {saved.data} has no usable step ({step!r}); start from another checkpoint")
    return step


class CheckpointWriter:
    """Writes checkpoints on rank 0: while training goes on when one is due, at once when it must be durable."""

    def __init__(self, task: Task, state: State, report: Reports) -> None:
        self._task, self._state, self._report = task, state, report
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._saved_at = monotonic()
        self._kept: list[str] = []

    def save_if_due(self, step: int) -> None:
        """Begin a periodic checkpoint. One that comes due by the clock while another is being written is put off."""
        due_by_steps = self._task.save_every_steps is not None and step % self._task.save_every_steps == 0
        due_by_time = self._task.save_every_s is not None and monotonic() - self._saved_at >= self._task.save_every_s
        if not (due_by_steps or due_by_time):
            return
        if self._writing and not self._writing.done() and not due_by_steps:
            return
        self.finish_writing()
        self._saved_at = monotonic()
        snapshot, lines = self._sound(step), self._report.lines
        self._writing = self._writer.submit(self._write, step, snapshot, "periodic", lines, {}, {})

    def save_on_order(self, step: int) -> None:
        """Write a checkpoint and return once it is durable and announced."""
        self.finish_writing()
        self._write(step, self._sound(step), "order", self._report.lines, {}, {})

    def save_final(self, step: int, artifacts: Mapping[str, bytes], result: Mapping[str, Any]) -> None:
        """Write the last checkpoint, with the job's artifacts as further parts, and what it scored."""
        self.finish_writing()
        self._write(step, self._sound(step), "final", self._report.lines, artifacts, result)

    def finish_writing(self) -> None:
        """Wait for the checkpoint in the making; its failure is this run's."""
        if self._writing:
            self._writing.result()
            self._writing = None

    def _sound(self, step: int) -> dict[str, Any]:
        """Return the state to save. Raises NonFiniteError if it isn't finite, so a good checkpoint always remains."""
        snapshot = self._state.snapshot(step)
        for part in ("model", "optimizer", "average"):
            for name, tensor in snapshot.get(part, {}).items():
                if not torch.isfinite(tensor).all():
                    message = f"after step {step} {name} has numbers that are not finite ({part})"
                    raise NonFiniteError(f"{message}; lower lr, or look for broken images or labels", since=step)
        return snapshot

    def _write(
        self, step: int, snapshot: Mapping[str, Any], reason: Reason, lines: int,
        artifacts: Mapping[str, bytes], result: Mapping[str, Any],
    ) -> None:  # fmt: skip
        task, parts = self._task, {**pack(snapshot), **artifacts}
        written = write_checkpoint(task.folder, job=task.job, generation=task.generation, step=step, parts=parts)
        facts: dict[str, Any] = {"result": result} if reason == "final" else {}
        self._report.event(
            "checkpoint", step=step, data=written.data, manifest=written.manifest,
            final=reason == "final", reason=reason, lines=lines, **facts,
        )  # fmt: skip
        self._kept += [written.manifest, written.data]
        while len(self._kept) > 2 * KEPT:
            (task.folder / self._kept.pop(0)).unlink(missing_ok=True)


def pack(snapshot: Mapping[str, Any]) -> dict[str, bytes]:
    """The parts of a checkpoint."""
    return {
        "model.safetensors": pack_tensors(snapshot["model"]),
        "optimizer.safetensors": pack_tensors(snapshot["optimizer"]),
        **({"average.safetensors": pack_tensors(snapshot["average"])} if "average" in snapshot else {}),
        "state.json": json.dumps(snapshot["state"], sort_keys=True).encode(),
    }


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[str], dict[str, Tensor]]:
    """The kinds of tensor the optimizer keeps per parameter, and all of them as "parameter/kind"."""
    kinds = sorted({kind for kept in optimizer.state.values() for kind, value in kept.items() if value is not None})
    names = {
        f"{name}/{kind}": optimizer.state[parameter][kind]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for kind in kinds
        if optimizer.state[parameter].get(kind) is not None
    }
    return kinds, names


def _check_identity(facts: Mapping[str, Any], state: State, saved: CheckpointFiles) -> None:
    for name in ("step", "optimizer_state", "scaler", *state.identity):
        if name not in facts:
            raise DataError(f"state.json in the checkpoint {saved.data} lacks {name}; start from another checkpoint")
    for name, kind in (("optimizer_state", list), ("scaler", dict)):
        if not isinstance(facts[name], kind):
            raise DataError(
                f"state.json in the checkpoint {saved.data} has no usable {name}; start from another checkpoint"
            )
    for name, own in state.identity.items():
        if facts[name] != json.loads(json.dumps(own)):
            raise DataError(
                f"the checkpoint {saved.data} belongs to another run: its {name} is {_short(facts[name])}, "
                f"this job's is {_short(own)}; resume one of this job's own, or use init to start from its weights"
            )


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 200 else text[:197] + "..."


def _load_tensors(own: Mapping[str, Tensor], parts: Mapping[str, bytes], part: str, saved: CheckpointFiles) -> None:
    tensors = unpack_tensors(parts, part, saved.data)
    _check_names(set(own), set(tensors), part, saved)
    for name, tensor in tensors.items():
        _check_shape(name, own[name], tensor, saved)
        if own[name].dtype != tensor.dtype:
            raise DataError(
                f"{name} in the checkpoint {saved.data} holds {tensor.dtype}, this model {own[name].dtype}; resume "
                "with the recipe and the trainer that wrote it"
            )
        own[name].copy_(tensor)


def _load_optimizer(state: State, kinds: list[str], tensors: Mapping[str, Tensor], saved: CheckpointFiles) -> None:
    """Some optimizers make all their state at once; others come without, and then each kind is like its parameter."""
    own = {
        f"{name}/{kind}": (parameter, kind, state.optimizer.state[parameter].get(kind, parameter))
        for name, parameter in state.model.named_parameters()
        if parameter.requires_grad
        for kind in state.optimizer.state[parameter] or kinds
    }
    _check_names(set(own), set(tensors), "optimizer.safetensors", saved)
    for name, (parameter, kind, like) in own.items():
        _check_shape(name, like, tensors[name], saved)
        # laid out in memory as the parameter is: the fused step walks both by address
        state.optimizer.state[parameter][kind] = torch.empty_like(like).detach().copy_(tensors[name])


def _check_names(own: set[str], found: set[str], part: str, saved: CheckpointFiles) -> None:
    if lacking := sorted(own - found):
        raise DataError(f"{part} in the checkpoint {saved.data} lacks {lacking[0]}; start from another checkpoint")
    if foreign := sorted(found - own):
        raise DataError(
            f"{part} in the checkpoint {saved.data} holds {foreign[0]}, which this model has not; "
            "resume with the recipe that wrote it"
        )


def _check_shape(name: str, own: Tensor, found: Tensor, saved: CheckpointFiles) -> None:
    if own.shape != found.shape:
        raise DataError(
            f"{name} in the checkpoint {saved.data} has shape {tuple(found.shape)}, "
            f"this model needs {tuple(own.shape)}; "
            "resume with the parameters that wrote it"
        )

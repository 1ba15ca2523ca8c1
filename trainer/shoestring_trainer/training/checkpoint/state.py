# SPDX-License-Identifier: Apache-2.0
"""The whole state of a run: copied at a step, saved, and restored so that the run continues with the same bits.

What is not here needs no saving: data order, augmentation and dropout are functions of the seed and the step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from shoestring_core.task import CheckpointFiles
from torch import Tensor, nn

from shoestring_trainer.training.checkpoint.files import (
    FILE_LIST_PART,
    pack_tensors,
    read_checkpoint,
    unpack_json,
    unpack_tensors,
)
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.optim.weight_average import WeightAverage


@dataclass(frozen=True)
class TrainingState:
    """The objects that hold the run's state.

    identity     what a checkpoint must agree with to be this run's: recipe, parameters, seed, data
    skip         steps whose batches are skipped: those of the task, and of the checkpoint that it resumes
    files        the packed list of its data's files, see data/file_list.py; None: it has none
    unevaluated  metrics of the latest step while its evaluation is still to be done, and the step to be reported with
                 it; else empty
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    identity: Mapping[str, Any]
    average: WeightAverage | None = None
    skip: set[int] = field(default_factory=set)
    files: bytes | None = None
    unevaluated: dict[str, float] = field(default_factory=dict)

    def snapshot(self, step: int) -> dict[str, Any]:
        """Return a copy on the CPU that later steps do not change."""
        names, tensors = _optimizer_tensors(self.model, self.optimizer)
        return {
            "model": {name: _copy(tensor) for name, tensor in self.model.state_dict().items()},
            "optimizer": {name: _copy(tensor) for name, tensor in tensors.items()},
            **(
                {"average": {name: _copy(tensor) for name, tensor in self.average.tensors.items()}}
                if self.average
                else {}
            ),
            **({"files": self.files} if self.files else {}),
            "state": {
                **self.identity,
                "step": step,
                "optimizer_state": names,
                "scaler": self.scaler.state_dict(),
                **({"skip": sorted(self.skip)} if self.skip else {}),
                **({"unevaluated": dict(self.unevaluated)} if self.unevaluated else {}),
            },
        }


def restore_checkpoint(state: TrainingState, files: CheckpointFiles) -> int:
    """Load a checkpoint into `state` and return its step.

    Raises DataError, naming the file, if it is damaged, incomplete, or of another run.
    """
    parts = read_checkpoint(files.data, files.manifest)
    content = unpack_json(parts, "state.json", files.data)
    _check_identity(content, state, files)
    _load_tensors(state.model.state_dict(), parts, "model.safetensors", files)
    if state.average:
        _load_tensors(state.average.tensors, parts, "average.safetensors", files)
    _load_optimizer(
        state, content["optimizer_state"], unpack_tensors(parts, "optimizer.safetensors", files.data), files
    )
    if state.scaler.is_enabled():
        if set(content["scaler"]) != set(state.scaler.state_dict()):
            raise DataError(
                f"the checkpoint {files.data} has no complete loss scale; resume it in its own precision, not in fp16"
            )
        state.scaler.load_state_dict(content["scaler"])
    state.skip.update(content.get("skip", ()))
    step, unevaluated = content["step"], content.get("unevaluated", {})
    if not isinstance(step, int) or step < bool(unevaluated):
        raise DataError(f"the checkpoint {files.data} has no usable step ({step!r}); start from another checkpoint")
    if not isinstance(unevaluated, dict) or not all(type(value) in (int, float) for value in unevaluated.values()):
        raise DataError(
            f"state.json in the checkpoint {files.data} has no usable metrics; start from another checkpoint"
        )
    state.unevaluated.update(unevaluated)
    return step


def pack_snapshot(snapshot: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the parts of a checkpoint."""
    return {
        "model.safetensors": pack_tensors(snapshot["model"]),
        "optimizer.safetensors": pack_tensors(snapshot["optimizer"]),
        **({"average.safetensors": pack_tensors(snapshot["average"])} if "average" in snapshot else {}),
        "state.json": json.dumps(snapshot["state"], sort_keys=True).encode(),
        **({FILE_LIST_PART: snapshot["files"]} if "files" in snapshot else {}),
    }


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[str], dict[str, Tensor]]:
    """Return the names of the optimizer's tensors per parameter, and all tensors as "parameter/name"."""
    names = sorted({name for state in optimizer.state.values() for name, value in state.items() if value is not None})
    tensors = {
        f"{parameter_name}/{name}": optimizer.state[parameter][name]
        for parameter_name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for name in names
        if optimizer.state[parameter].get(name) is not None
    }
    return names, tensors


def _check_identity(content: Mapping[str, Any], state: TrainingState, files: CheckpointFiles) -> None:
    for name in ("step", "optimizer_state", "scaler", *state.identity):
        if name not in content:
            raise DataError(f"state.json in the checkpoint {files.data} lacks {name}; start from another checkpoint")
    for name, kind in (("optimizer_state", list), ("scaler", dict)):
        if not isinstance(content[name], kind):
            raise DataError(
                f"state.json in the checkpoint {files.data} has no usable {name}; start from another checkpoint"
            )
    for name, own in state.identity.items():
        if content[name] != json.loads(json.dumps(own)):
            raise DataError(
                f"the checkpoint {files.data} belongs to another run: its {name} is {_short(content[name])}, "
                f"this job's is {_short(own)}; resume one of this job's own, or use init to start from its weights"
            )


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 200 else text[:197] + "..."


def _load_tensors(own: Mapping[str, Tensor], parts: Mapping[str, bytes], part: str, files: CheckpointFiles) -> None:
    tensors = unpack_tensors(parts, part, files.data)
    _check_names(set(own), set(tensors), part, files)
    for name, tensor in tensors.items():
        _check_shape(name, own[name], tensor, files)
        if own[name].dtype != tensor.dtype:
            raise DataError(
                f"{name} in the checkpoint {files.data} holds {tensor.dtype}, this model {own[name].dtype}; resume "
                "with the recipe and the trainer that wrote it"
            )
        own[name].copy_(tensor)


def _load_optimizer(
    state: TrainingState, names: list[str], tensors: Mapping[str, Tensor], files: CheckpointFiles
) -> None:
    """Load optimizer tensors. Some optimizers create all at once; for others, each is shaped like its parameter."""
    own = {
        f"{parameter_name}/{name}": (parameter, name, state.optimizer.state[parameter].get(name, parameter))
        for parameter_name, parameter in state.model.named_parameters()
        if parameter.requires_grad
        for name in state.optimizer.state[parameter] or names
    }
    _check_names(set(own), set(tensors), "optimizer.safetensors", files)
    for key, (parameter, name, like) in own.items():
        _check_shape(key, like, tensors[key], files)
        # in the parameter's memory format: the fused step iterates over both by address
        state.optimizer.state[parameter][name] = torch.empty_like(like).detach().copy_(tensors[key])


def _check_names(own: set[str], loaded: set[str], part: str, files: CheckpointFiles) -> None:
    if missing := sorted(own - loaded):
        raise DataError(f"{part} in the checkpoint {files.data} lacks {missing[0]}; start from another checkpoint")
    if unknown := sorted(loaded - own):
        raise DataError(
            f"{part} in the checkpoint {files.data} holds {unknown[0]}, which this model doesn't have; "
            "resume with the recipe that wrote it"
        )


def _check_shape(name: str, own: Tensor, loaded: Tensor, files: CheckpointFiles) -> None:
    if own.shape != loaded.shape:
        raise DataError(
            f"{name} in the checkpoint {files.data} has shape {tuple(loaded.shape)}, "
            f"this model needs {tuple(own.shape)}; "
            "resume with the parameters that wrote it"
        )

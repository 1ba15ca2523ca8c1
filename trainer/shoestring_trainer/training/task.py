# SPDX-License-Identifier: Apache-2.0
"""The task file that a training process starts with: what to train, from where, and when to save."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shoestring_trainer.training.errors import UserError

PRECISIONS = ("auto", "fp16", "bf16", "fp32")
_KEYS = {
    "format", "job", "generation", "recipe", "params", "data", "seed", "precision",
    "resume", "init", "checkpoint", "goal", "export", "skip", "scratch",
}  # fmt: skip


@dataclass(frozen=True)
class CheckpointFiles:
    """Paths of a checkpoint's two files."""

    data: Path
    manifest: Path


@dataclass(frozen=True)
class TaskGoal:
    """Stop as soon as `metric`, measured on validation data, is at least `reach`."""

    metric: str
    reach: float


@dataclass(frozen=True)
class Task:
    """A validated task file. `folder` holds it and everything that the ranks write.

    seed, precision  None: as the recipe's parameters say
    init             weights to initialize with: another run's checkpoint, or a path; None for a run that resumes
    data_format      format of the data at data_path
    onnx             export the model to ONNX too
    skip             steps whose batches are skipped, because the loss was not finite there before
    scratch          folder for decoded images that later generations on this machine use; None: the run's folder
    """

    folder: Path
    job: str
    generation: int
    recipe: str
    params: dict[str, Any]
    data_path: Path | None
    seed: int | None
    precision: str | None
    resume: CheckpointFiles | None
    init: CheckpointFiles | Path | None
    save_every_s: float | None
    save_every_steps: int | None
    goal: TaskGoal | None
    onnx: bool = False
    data_format: str = "imagefolder"
    skip: frozenset[int] = frozenset()
    scratch: Path | None = None


Outcome = Literal["finished", "drained", "error"]


@dataclass
class StepCounter:
    """Steps that this rank has completed; outside of the loop so that every exit can report the step."""

    start_step: int = 0
    step: int = 0


def read_task(path: Path) -> Task:
    """Parse a task file. Raises UserError that names the file and the field."""
    try:
        text = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the task file {path}: {error.strerror}; give the path of a task.json") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(text, dict) or text.get("format") != 1:
        raise UserError(f"{path} is not a task of format 1; install the same version of trainer and service")
    if unknown := sorted(set(text) - _KEYS):
        raise UserError(f"{path} has unknown fields: {', '.join(unknown)}")
    try:
        return _task(path.resolve().parent, text)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has a missing or malformed field: {error!r}") from error


def _task(folder: Path, text: dict[str, Any]) -> Task:
    precision, seed = text.get("precision"), text.get("seed")
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    every = text.get("checkpoint") or {}
    data, goal = text.get("data"), text.get("goal")
    resume = _checkpoint_files(text.get("resume"))
    return Task(
        folder=folder,
        job=str(text["job"]),
        generation=int(text["generation"]),
        recipe=str(text["recipe"]),
        params=dict(text.get("params") or {}),
        data_path=_local_path(data["train"]) if data else None,
        seed=None if seed is None else int(seed),
        precision=precision,
        resume=resume,
        init=None if resume else _init(text.get("init")),
        save_every_s=every.get("every_s"),
        save_every_steps=every.get("every_steps"),
        goal=TaskGoal(str(goal["metric"]), float(goal["reach"])) if goal else None,
        onnx="onnx" in (text.get("export") or []),
        data_format=str(data.get("format", "imagefolder")) if data else "imagefolder",
        skip=frozenset(step for first, last in text.get("skip") or () for step in range(first, last + 1)),
        scratch=Path(text["scratch"]) if text.get("scratch") else None,
    )


def _checkpoint_files(files: dict[str, str] | None) -> CheckpointFiles | None:
    return CheckpointFiles(Path(files["data"]), Path(files["manifest"])) if files else None


def _local_path(place: str) -> Path:
    if not place.startswith("/"):
        raise ValueError(f"the data of {place} were not downloaded; install the same version of trainer and service")
    return Path(place)


def _init(place: dict[str, str] | str | None) -> CheckpointFiles | Path | None:
    if not isinstance(place, str):
        return _checkpoint_files(place)
    if not place.startswith("/"):
        raise ValueError(f"the weights of {place} were not downloaded; install the same version of trainer and service")
    return Path(place)

# SPDX-License-Identifier: Apache-2.0
"""The task file that a training process starts with, and how far it has come."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import ValidationError, model_validator
from shoestring_core.regular_files import read_regular_text
from shoestring_core.task import CheckpointFiles, RecipeTask

from shoestring_trainer.training.errors import UserError


class LocalTask(RecipeTask):
    """A task whose files are all on this machine. `folder` holds the task and everything that the ranks write."""

    folder: Path

    @model_validator(mode="after")
    def _require_local_files(self) -> Self:
        for place in (self.data and self.data.train, self.initial_weights):
            if place and isinstance(place, str | Path) and not str(place).startswith("/"):
                raise ValueError(f"{place} was not downloaded; install the same version of trainer and service")
        return self

    @property
    def data_path(self) -> Path | None:
        return Path(self.data.train) if self.data else None

    @property
    def data_format(self) -> str:
        return self.data.format if self.data else ""

    @property
    def initial_weights(self) -> CheckpointFiles | Path | None:
        """None for a run that resumes."""
        if self.resume or self.init is None:
            return None
        return Path(self.init) if isinstance(self.init, str) else self.init

    @property
    def skipped_steps(self) -> frozenset[int]:
        return frozenset(step for first, last in self.skip for step in range(first, last + 1))


@dataclass
class StepCounter:
    """Steps that this rank has completed; outside of the loop so that every exit can report the step."""

    start_step: int = 0
    step: int = 0


def read_task(path: Path) -> LocalTask:
    """Parse a task file. Raises UserError that names the file and the field."""
    try:
        content = json.loads(read_regular_text(path))
    except OSError as error:
        raise UserError(f"cannot read the task file {path}: {error.strerror}; give the path of a task.json") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != 1:
        raise UserError(f"{path} is not a task of format 1; install the same version of trainer and service")
    try:
        return LocalTask.model_validate(content | {"folder": path.resolve().parent})
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
            + ("" if one["type"] == "missing" else f" (got {one['input']!r})")
            for one in error.errors()
        ]
        raise UserError(f"{path} has a missing, unknown or malformed field: {'; '.join(problems)}") from error

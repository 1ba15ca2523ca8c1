# SPDX-License-Identifier: Apache-2.0
"""What ranks write for the agent beside their task: how each of them ended, and each checkpoint in events.jsonl."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from shoestring_core.wire import Step

Outcome = Literal["finished", "drained", "error"]
MAX_STOP_S = 1e5
CheckpointReason = Literal["periodic", "order", "final"]


class RankError(BaseModel):
    """`since`: the first step with NaN or infinite values."""

    kind: str
    message: str = ""
    traceback: str = ""
    since: int | None = None


class ExitFile(BaseModel):
    """The content of exit-{rank}.json. `t`: unix seconds."""

    rank: int
    outcome: Outcome
    step: int
    t: float
    error: RankError | None = None


class CheckpointEvent(BaseModel):
    """The data of the event `checkpoint`. Paths are relative to the run's folder.

    lines    of metrics.jsonl by this process that belong to the checkpoint
    seconds  that writing it took
    stop_s   from a request to stop until a checkpoint begins, at most: the steps that are trained meanwhile
    result   metrics of a finished run
    """

    step: Step
    data: str = Field(pattern=r"^ckpt/[\w.-]+\.data$")
    manifest: str = Field(pattern=r"^ckpt/[\w.-]+\.json$")
    reason: CheckpointReason
    final: bool
    lines: int
    seconds: float | None = None
    stop_s: Annotated[float, Field(ge=0, le=MAX_STOP_S, allow_inf_nan=False)] = 0.0
    result: dict[str, Any] | None = None


def printable(text: str) -> str:
    """The text without what UTF-8 can't encode: names of files may hold any bytes."""
    return text.encode(errors="replace").decode()

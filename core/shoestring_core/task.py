# SPDX-License-Identifier: Apache-2.0
"""The task that the ranks of a generation run: made from a spec, sent to agents in orders, read by ranks as task.json.

A field that a rank doesn't know is refused, because it would train something else: a new one needs a new version of
the agent protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:  # agents read tasks; they have no use for the spec's parser
    from shoestring_core.spec import JobSpec

AUTO_CHECKPOINT_S = 15.0
"""`checkpoint.every: auto`. Young's rule would wait longer; what is lost with a machine weighs more on short jobs."""

Device = Literal["auto", "cuda", "cpu"]
"""What a rank trains on. auto: a CUDA device if there is one; cuda: its machine is paid for its GPUs, so that a rank
that finds none fails instead of training on the CPU."""
Precision = Literal["auto", "fp16", "fp16-true", "bf16", "fp32"]


MAX_CHECKPOINT_BYTES = 8 << 30
"""Data of a checkpoint, or other weights; more are neither stored nor read."""


@dataclass(frozen=True)
class CheckpointFiles:
    """Paths of a checkpoint's two files."""

    data: Path
    manifest: Path


class TaskPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskData(TaskPart):
    """`train` is a bucket's URL until the data are on the machine, then a path, and `source` the URL it came from.

    stream       shards are downloaded to `train` while ranks read them
    cache_bytes  disk space for them; None: a share of what is free
    requests     folder on the machine in which ranks say what they read next
    """

    train: str
    format: str = "imagefolder"
    source: str | None = None
    stream: bool = False
    cache_bytes: int | None = None
    requests: str | None = None


class SavePolicy(TaskPart):
    """When to save a checkpoint, besides at the end."""

    every_s: float | None = None
    every_steps: int | None = None


class TaskGoal(TaskPart):
    """Stop as soon as `metric`, measured on validation data, is at least `reach`."""

    metric: str
    reach: float


class RecipeTask(TaskPart):
    """Train a recipe.

    seed, precision  None: as the recipe's parameters say
    resume           the checkpoint to continue from; what is started starts from it, not from `init`
    init             weights to initialize with: `job/ID` or a bucket's URL until they are on the machine
    skip             spans of steps, [first, last], whose batches are skipped: the loss was not finite there before
    device           see Device
    scratch          folder for decoded images that later generations on the machine use; None: the run's folder
    """

    kind: Literal["recipe"] = "recipe"
    format: Literal[1]
    job: str
    generation: int
    recipe: str
    params: dict[str, Any] = {}
    data: TaskData | None = None
    seed: int | None = None
    precision: Precision | None = None
    resume: CheckpointFiles | None = None
    init: CheckpointFiles | str | None = None
    checkpoint: SavePolicy = SavePolicy()
    goal: TaskGoal | None = None
    export: tuple[Literal["safetensors", "onnx"], ...] = ()
    skip: tuple[tuple[int, int], ...] = ()
    device: Device = "auto"
    scratch: Path | None = None


Task = RecipeTask
"""What a rank can be started with: the union of all kinds, told apart by `kind`. The next is a user's own script."""


def from_spec(
    spec: JobSpec, *, job: str, generation: int, skip: Sequence[Sequence[int]] = (), device: Device = "auto"
) -> Task:
    """The task without local paths: the holder of a checkpoint fills in `resume`, and `init` where that names a job."""
    every, goal, data = spec.checkpoint.every, spec.goal, spec.data
    assert spec.recipe is not None
    return RecipeTask(
        format=1,
        job=job,
        generation=generation,
        recipe=spec.recipe,
        params=spec.params,
        data=data and TaskData(train=data.train, format=data.format, stream=data.stream, cache_bytes=data.cache_bytes),
        seed=spec.params.get("seed", 0),
        precision=spec.params.get("precision", "auto"),
        init=spec.init,
        checkpoint=SavePolicy(every_s=AUTO_CHECKPOINT_S if isinstance(every, str) else every),
        goal=TaskGoal(metric=goal.metric, reach=goal.reach) if goal and goal.reach is not None else None,
        export=spec.outputs.export if spec.outputs else (),
        skip=tuple((first, last) for first, last in skip),
        device=device,
    )

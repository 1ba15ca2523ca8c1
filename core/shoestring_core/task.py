# SPDX-License-Identifier: Apache-2.0
"""The task that a spec becomes: what the ranks of a generation are started with, by the service or alone."""

from __future__ import annotations

from typing import Any

from shoestring_core.spec import JobSpec

FORMAT = 1
AUTO_CHECKPOINT_S = 15.0
"""`checkpoint.every: auto`. Young's rule would wait longer; what is lost with a machine weighs more on short jobs."""


def of_spec(spec: JobSpec, *, job: str, generation: int) -> dict[str, Any]:
    """task.json without local paths: whoever has a checkpoint fills in `resume`, and `init` where that names a job."""
    every = spec.checkpoint.every
    return {
        "format": FORMAT,
        "job": job,
        "generation": generation,
        "recipe": spec.recipe,
        "params": spec.params,
        "data": {"train": spec.data.train, "format": spec.data.format} if spec.data else None,
        "seed": spec.params.get("seed", 0),
        "precision": spec.params.get("precision", "auto"),
        "resume": None,
        "init": spec.init,
        "checkpoint": {"every_s": AUTO_CHECKPOINT_S if isinstance(every, str) else every, "every_steps": None},
        "goal": spec.goal.model_dump(mode="json", include={"metric", "reach", "then"}) if spec.goal else None,
        **({"export": list(spec.outputs.export)} if spec.outputs and spec.outputs.export else {}),
    }

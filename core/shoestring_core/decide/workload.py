# SPDX-License-Identifier: Apache-2.0
"""What a job trains, as far as its duration depends on it: how much work, and which jobs do the same work."""

from __future__ import annotations

from math import ceil
from typing import Any

from shoestring_core.spec import JobSpec
from shoestring_core.spec.schedules import smallest_batch

SAME_SPEED_PARAMS = frozenset(
    (
        "epochs", "eval_every_epochs", "seed", "lr", "lr_base_batch_size", "lr_schedule", "warmup_ratio", "bias_lr",
        "whitening_lr", "whitening_lr_schedule", "momentum", "momentum_schedule", "muon_lr", "muon_momentum",
        "weight_decay", "label_smoothing", "weight_average_decay", "weight_average_power",
    )
)  # fmt: skip
"""Parameters that don't change how long a step, an evaluation, the startup or the finish takes. All others may."""

PHASE_PARAMS = ("image_size_schedule", "batch_size_schedule", "crop_scale_schedule", "rectangular_eval_schedule")
"""Parameters that make the epochs of a run differ: only a complete run is a valid measurement then."""


def fingerprint(spec: JobSpec) -> dict[str, Any]:
    """What an epoch's duration depends on besides the machines: jobs with equal fingerprints measure each other."""
    return {
        "recipe": spec.recipe,
        "params": {name: value for name, value in sorted(spec.params.items()) if name not in SAME_SPEED_PARAMS},
        "data": spec.data.model_dump(mode="json") if spec.data else None,
        "views": bool(spec.goal and spec.goal.metric.endswith("_tta")),
        "processes": spec.resources.procs,
    }


def has_phases(spec: JobSpec) -> bool:
    """Whether its epochs differ from each other."""
    return any(spec.params.get(name) for name in PHASE_PARAMS)


def epochs(spec: JobSpec) -> float:
    return float(spec.params.get("epochs") or 1)


def evaluations(spec: JobSpec) -> int:
    """How often it is evaluated before its last step: after every `eval_every_epochs`-th epoch but the last."""
    return max(0, ceil(epochs(spec) / int(spec.params.get("eval_every_epochs") or 1)) - 1)


def processes_per_machine(spec: JobSpec, nodes: int, gpus: int) -> int:
    """Ranks on each of so many machines, which have so many GPUs each: without `procs`, no more than there are samples
    for."""
    return spec.resources.procs or max(1, min(gpus, min_batch(spec) // nodes))


def min_batch(spec: JobSpec) -> int:
    """Samples in a step, at the smallest batch of its schedule."""
    return smallest_batch(spec.params)

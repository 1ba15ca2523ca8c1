# SPDX-License-Identifier: Apache-2.0
"""Check the schedules among a spec's parameters, and whether its smallest batch can be shared by its processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shoestring_core import document
from shoestring_core.breakpoints import Breakpoints, parse_breakpoints
from shoestring_core.errors import Problem
from shoestring_core.spec.model import JobSpec
from shoestring_core.wording.units import counted

_SUFFIX = "_schedule"
STEP_SCHEDULES = ("batch_size_schedule", "image_size_schedule", "crop_scale_schedule", "rectangular_eval_schedule")
"""Between whose breakpoints the value is constant; the others are interpolated."""
_BOUNDS = {
    "lr_schedule": (0, 1000), "whitening_lr_schedule": (0, 1000), "momentum_schedule": (0, 0.9999),
    "batch_size_schedule": (0, 65536), "image_size_schedule": (16, 1024), "crop_scale_schedule": (0, 1),
    "rectangular_eval_schedule": (0, 1),
}  # fmt: skip
"""Of the values, or of images in a batch: those of the parameters that they change."""


def schedule_problems(spec: JobSpec) -> list[Problem]:
    """Return what is wrong with the schedules; if nothing is, whether a batch has an image for each process."""
    problems = []
    for name, text in spec.params.items():
        if name.endswith(_SUFFIX) and text:
            try:
                _require_bounds(name, _parse(name, str(text)), spec.params)
            except ValueError as error:
                problems.append(Problem(document.json_pointer("/params", name), f"{name}: {error}.", "invalid-value"))
    return problems or _batch_problems(spec)


def smallest_batch(params: Mapping[str, Any]) -> int:
    """Return the images in a step at the smallest batch of the schedule. Raises ValueError if it is none."""
    schedule = _parse("batch_size_schedule", str(params.get("batch_size_schedule") or "0:1"))
    smallest = min(factor for position, factor in schedule if position < 1)
    return max(1, round(int(params.get("batch_size") or 32) * smallest))


def _batch_problems(spec: JobSpec) -> list[Problem]:
    nodes, procs = spec.resources.nodes, spec.resources.procs or 1
    if "batch_size" not in spec.params or (batch := smallest_batch(spec.params)) >= nodes * procs:
        return []
    at_its_smallest = " at its smallest" if spec.params.get("batch_size_schedule") else ""
    message = (
        f"batch_size is {batch}{at_its_smallest}, less than the {nodes * procs} processes that share it "
        f"(nodes: {nodes}, procs: {procs}). Raise it, or use fewer processes."
    )
    return [Problem("/params/batch_size", message, "contradiction")]


def _require_bounds(name: str, breakpoints: Breakpoints, params: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that the trainer can't use."""
    low, high = _BOUNDS.get(name, (-math.inf, math.inf))
    if name == "batch_size_schedule":
        batch_size = int(params.get("batch_size") or 32)
        for _, factor in breakpoints:
            if not low < factor * batch_size < high + 0.5:
                most = counted(int(high), "image")
                raise ValueError(f"its factor {factor:g} of batch_size {batch_size:,} makes no batch of 1 to {most}")
        return
    if outside := [value for _, value in breakpoints if not low <= value <= high]:
        raise ValueError(f"its values must be from {low:g} to {high:g}, not {outside[0]:g}")


def _parse(name: str, text: str) -> Breakpoints:
    breakpoints = parse_breakpoints(text)
    if name in STEP_SCHEDULES and (breakpoints[0][0] != 0 or breakpoints[-1][0] > 1):
        raise ValueError(f"the schedule {text!r} must begin at 0 and end by 1, as in '0:128 14/35:224'")
    return breakpoints

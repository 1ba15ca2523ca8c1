# SPDX-License-Identifier: Apache-2.0
"""Finished training runs from three sources: a job of the service, a folder that the trainer wrote standalone, and a
DAWNBench entry.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shoestring_core import dawnbench, recipes, rest
from shoestring_core import results as core
from shoestring_core.errors import InvalidSpec
from shoestring_core.json_floats import decode_float
from shoestring_core.regular_files import MAX_RUN_BYTES, make_folder, read_regular, require_regular
from shoestring_core.results import Curve, RentedMachine, RunResult
from shoestring_core.task import RecipeTask

from shoestring.client import Client, short_id

TOP1, TOP5 = "val/acc", "val/acc_top5"
CURVES = ("epoch", "train/loss", TOP1, TOP5, core.EVALUATION_S)
FIGURE_NAMES = (
    "train_s",
    "train_and_score_s",
    "images_per_s",
    "data_wait_fraction",
    core.DOWNLOAD_STALL_S,
    core.DECODE_STALL_S,
    core.UPLOAD_STALL_S,
    "mfu",
    "min_train_s",
    "flop_per_image",
    "precision",
    "world_size",
    "steps_skipped",
)
DAWNBENCH_TARGETS = {TOP1: 0.94, TOP5: 0.93}
"""Top-1 accuracy for CIFAR-10, top-5 for ImageNet."""


class RunError(Exception):
    """A run can't be read or written; the message says which and what to do."""


@dataclass(frozen=True)
class LoadedRun:
    """A run, with what only its source knows: target, further results, framework, whether top-5 counts (ImageNet)."""

    run: RunResult
    target: float | None = None
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    framework: str = "PyTorch"
    wants_top5: bool = False


def from_job(client: Client, job: rest.Job, metric: str | None) -> LoadedRun:
    """Load the run of a job from the service."""
    name = str(job.recipe).partition("@")[0]
    chosen = metric or _recipe_metric(name)
    reading = client.metrics(job.id, keys=",".join({*CURVES, chosen}))
    machines = [machine for attempt in client.attempts(job.id).attempts for machine in attempt.machines]
    submitted = job.created_at.timestamp()
    run = RunResult(
        name=short_id(job.id),
        model=name,
        hardware=_hardware(machines),
        metric=chosen,
        epochs=core.epoch_results(
            {curve.name: Curve(curve.steps, curve.times, curve.values) for curve in reading.curves},
            chosen, starts=[generation.start_step for generation in reading.generations], submitted=submitted,
        ),
        usd_per_hour=_on_demand_usd_per_hour(machines),
        submitted=submitted,
        machines=tuple(_machine(machine) for machine in machines if machine.launched_at),
    )  # fmt: skip
    result = job.result or {}
    goal = job.spec.get("goal") or {}
    figures = {key: result[key] for key in FIGURE_NAMES if key in result}
    if energy := client.cost(job.id).energy:
        figures |= {"energy_kwh": energy.kwh, "energy_joules": energy.joules, "energy_of": "+".join(energy.of)}
    return LoadedRun(
        run, _target(name, chosen, goal.get("metric"), goal.get("reach")), figures,
        str(result.get("framework", "PyTorch")), name.startswith("imagenet/"),
    )  # fmt: skip


def from_folder(folder: Path, metric: str | None) -> LoadedRun:
    """Load the run in a folder that `python -m shoestring_trainer train` wrote. Raises RunError."""
    try:
        return _from_files(folder, metric)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is not the folder of a run ({error}); give one that the trainer wrote") from error
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:  # other JSON than its own
        raise RunError(f"{folder} holds a damaged run ({error!r}); give one that the trainer wrote") from error


def _from_files(folder: Path, metric: str | None) -> LoadedRun:
    task = RecipeTask.model_validate_json(read_regular(folder / "task.json"))
    points, events = _lines(folder / "metrics.jsonl"), _lines(folder / "events.jsonl")
    name = task.recipe.partition("@")[0]
    chosen = metric or _recipe_metric(name)
    result: dict[str, Any] = next((event["result"] for event in reversed(events) if event.get("final")), {})
    run = RunResult(
        name=folder.name,
        model=name,
        hardware="this computer",
        metric=chosen,
        epochs=core.epoch_results(
            _curves(points), chosen, starts=[event["step"] for event in events if event["event"] == "started"],
            submitted=next((event["t"] for event in events), None),
        ),
    )  # fmt: skip
    goal = (task.goal.metric, task.goal.reach) if task.goal else (None, None)
    return LoadedRun(
        run, _target(name, chosen, *goal), {key: result[key] for key in FIGURE_NAMES if key in result},
        str(result.get("framework", "PyTorch")), name.startswith("imagenet/"),
    )  # fmt: skip


def from_dawnbench(file: Path) -> LoadedRun:
    """Load a DAWNBench entry from `file` and the .tsv beside it. Raises RunError."""
    try:
        entry = dawnbench.read(read_regular(file), read_regular(file.with_suffix(".tsv")))
    except OSError as error:
        raise RunError(f"can't read {error.filename}: {error.strerror}; an entry is a .json and a .tsv file") from error
    except dawnbench.InvalidEntry as error:
        raise RunError(f"{file} is not a DAWNBench entry: {error}") from error
    run = dawnbench.run_from_entry(entry)
    return LoadedRun(run, DAWNBENCH_TARGETS[run.metric], framework=entry.framework, wants_top5=run.metric == TOP5)


def write_dawnbench_entry(loaded: LoadedRun, folder: Path, author: str, email: str) -> Path:
    """Write the run as a DAWNBench entry and return the path of its .json. Raises RunError."""
    if not loaded.run.epochs:
        raise RunError(f"{loaded.run.name} has no evaluated epochs; a DAWNBench entry needs them")
    try:
        entry = dawnbench.entry_from_run(
            loaded.run, author=author, email=email, framework=loaded.framework, submitted=datetime.now(UTC).date(),
            top5=loaded.wants_top5, misc=loaded.figures,
        )  # fmt: skip
    except dawnbench.InvalidEntry as error:
        raise RunError(f"{loaded.run.name} can't be an entry: {error}") from error
    description, rows = dawnbench.write(entry)
    try:
        make_folder(folder)
        for suffix in (".json", ".tsv"):
            require_regular(folder / f"{entry.stem}{suffix}")
        (folder / f"{entry.stem}.json").write_text(description)
        (folder / f"{entry.stem}.tsv").write_text(rows)
    except OSError as error:
        raise RunError(f"can't write to {folder}: {error.strerror}; choose another folder") from error
    return folder / f"{entry.stem}.json"


def _lines(file: Path) -> list[dict[str, Any]]:
    """The objects in a file, without a last line that was cut off when its writer was killed.

    Raises OSError, and ValueError or RecursionError for another line that is not JSON.
    """
    *whole, last = read_regular(file, MAX_RUN_BYTES).split(b"\n")
    with contextlib.suppress(ValueError):
        json.loads(last)
        whole.append(last)
    return [json.loads(line) for line in whole if line.strip()]


def _recipe_metric(name: str) -> str:
    try:
        return recipes.load(name).metric
    except InvalidSpec:  # a recipe of another version of the service
        return TOP1


def _target(name: str, metric: str, goal_metric: str | None, reach: float | None) -> float | None:
    """The goal of the run, or else the claim of its recipe, if it is one of `metric`."""
    if reach is not None and goal_metric == metric:
        return float(reach)
    try:
        claim = recipes.load(name).claim
    except InvalidSpec:
        return None
    return claim.value if claim and claim.metric == metric else None


def _curves(points: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    rows: dict[str, list[tuple[int, float, float]]] = {}
    for point in points:
        for name, value in {**point["v"], "epoch": point["epoch"]}.items():
            rows.setdefault(name, []).append((point["step"], point["t"], decode_float(value)))
    return {name: Curve(*zip(*columns, strict=True)) for name, columns in rows.items()}


def _machine(machine: rest.Machine) -> RentedMachine:
    assert machine.launched_at is not None
    return RentedMachine(
        usd_per_hour=float(machine.price_per_hour.amount),
        start=machine.launched_at.timestamp(),
        end=machine.ended_at.timestamp() if machine.ended_at else None,
    )


def _newest_per_slot(machines: Sequence[rest.Machine]) -> list[rest.Machine]:
    """Return the newest machine of each slot."""
    return list({machine.slot: machine for machine in machines}.values())


def _hardware(machines: Sequence[rest.Machine]) -> str:
    kinds = [f"{machine.type} ({machine.provider})" for machine in _newest_per_slot(machines)]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)) or "no machine yet"


def _on_demand_usd_per_hour(machines: Sequence[rest.Machine]) -> float | None:
    newest = _newest_per_slot(machines)
    return sum(float(machine.on_demand_per_hour.amount) for machine in newest) if newest else None

# SPDX-License-Identifier: Apache-2.0
"""What runs came to, ours and others': `shoestring results`. A run is a job, a folder that the trainer wrote alone, or
an entry of DAWNBench; `core.results` compares them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from shoestring_core import dawnbench, recipes, rest
from shoestring_core import results as core
from shoestring_core.errors import InvalidSpec
from shoestring_core.results import Curve, Machine, Run

from shoestring.client import Client
from shoestring.terminal import Json, Url, connect, err, out, resolve, table, tell

TOP1, TOP5 = "val/acc", "val/acc_top5"
CURVES = ("epoch", "train/loss", TOP1, TOP5, core.EVALUATION_S)
FIGURES = (
    "images_per_s",
    "input_share",
    "share_of_peak",
    "floor_s",
    "flop_per_image",
    "precision",
    "world_size",
    "steps_skipped",
)
BARS = {TOP1: 0.94, TOP5: 0.93}
"""DAWNBench's: CIFAR-10's top-1, ImageNet's top-5."""


class Unusable(Exception):
    """A result can't be read or written; says which and what to do."""


@dataclass(frozen=True)
class Found:
    """A run with what only its source knows: the value it aimed at, its figures, whether it is of ImageNet."""

    run: Run
    target: float | None = None
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    framework: str = "PyTorch"
    wants_top5: bool = False


def results(
    what: Annotated[list[str], typer.Argument(metavar="RUN…", help="Jobs, folders of runs, DAWNBench's .json files.")],
    target: Annotated[float | None, typer.Option(help="Accuracy to reach; default: the goal's or the claim's.")] = None,
    metric: Annotated[str | None, typer.Option(help="Default: the recipe's.")] = None,
    export: Annotated[Path | None, typer.Option("--dawnbench", metavar="DIR", help="Write an entry.")] = None,
    author: Annotated[str | None, typer.Option(help="Of the entry.")] = None,
    email: Annotated[str | None, typer.Option(help="Of its author.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show what runs came to: accuracy by epoch, time and cost to the target, and of several how many reach it.

    \b
    shoestring results 0193
    shoestring results 0193 0194 0195 --target 0.94
    shoestring results 0193 davidcpage_resnet9_1v100-ec2_pytorch.json
    shoestring results 0193 --dawnbench entry/ --author "Our Team" --email team@example.org
    """
    found = [_load(name, metric, url) for name in what]
    bar = target if target is not None else _bar(found)
    if export is not None:
        _export(found, export, author, email)
    tell(_as_json(found, bar), as_json, lambda: _page(found, bar))


def of_job(client: Client, job: rest.Job, metric: str | None) -> Found:
    """A job's run, from what the service knows of it."""
    name = str(job.recipe).partition("@")[0]
    chosen = metric or _recipe_metric(name)
    told = client.metrics(job.id, keys=",".join({*CURVES, chosen}))
    machines = [machine for attempt in client.attempts(job.id).attempts for machine in attempt.machines]
    submitted = job.created_at.timestamp()
    run = Run(
        name=str(job.id)[:13],
        model=name,
        hardware=_hardware(machines),
        metric=chosen,
        epochs=core.epochs(
            {curve.name: Curve(curve.steps, curve.times, curve.values) for curve in told.curves},
            chosen, starts=[generation.start_step for generation in told.generations], submitted=submitted,
        ),
        usd_per_hour=_on_demand(machines),
        submitted=submitted,
        machines=tuple(_machine(machine) for machine in machines if machine.launched_at),
    )  # fmt: skip
    result = job.result or {}
    goal = (job.spec.get("goal") or {}).get("reach")
    figures = {key: result[key] for key in FIGURES if key in result}
    if energy := client.cost(job.id).energy:
        figures |= {"energy_kwh": energy.kwh, "energy_joules": energy.joules, "energy_of": "+".join(energy.of)}
    return Found(
        run, float(goal) if goal else _claimed(name, chosen), figures,
        str(result.get("framework", "PyTorch")), name.startswith("imagenet/"),
    )  # fmt: skip


def of_folder(folder: Path, metric: str | None) -> Found:
    """The run in a folder that `python -m shoestring_trainer train` wrote. Raises Unusable."""
    try:
        task = json.loads((folder / "task.json").read_bytes())
        points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if line]
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() if line]
    except (OSError, ValueError) as error:
        raise Unusable(f"{folder} is no folder of a run ({error}); name one that the trainer wrote") from error
    name = str(task["recipe"]).partition("@")[0]
    chosen = metric or _recipe_metric(name)
    result: dict[str, Any] = next((event["result"] for event in reversed(events) if event.get("final")), {})
    run = Run(
        name=folder.name,
        model=name,
        hardware="this computer",
        metric=chosen,
        epochs=core.epochs(
            _curves(points), chosen, starts=[event["step"] for event in events if event["event"] == "started"],
            submitted=next((event["t"] for event in events), None),
        ),
    )  # fmt: skip
    goal = (task.get("goal") or {}).get("reach")
    return Found(
        run, goal or _claimed(name, chosen), {key: result[key] for key in FIGURES if key in result},
        str(result.get("framework", "PyTorch")), name.startswith("imagenet/"),
    )  # fmt: skip


def of_entry(file: Path) -> Found:
    """DAWNBench's entry in `file` and the .tsv beside it. Raises Unusable."""
    try:
        entry = dawnbench.read(file.read_bytes(), file.with_suffix(".tsv").read_bytes())
    except OSError as error:
        raise Unusable(f"{error.filename} can't be read: {error.strerror}; an entry is a .json and a .tsv") from error
    except dawnbench.InvalidEntry as wrong:
        raise Unusable(f"{file} is no entry of DAWNBench: {wrong}") from wrong
    run = dawnbench.run_of(entry)
    return Found(run, BARS[run.metric], framework=entry.framework, wants_top5=run.metric == TOP5)


def _load(name: str, metric: str | None, url: str | None) -> Found:
    path = Path(name)
    if path.suffix == ".json":
        return of_entry(path)
    if path.is_dir():
        return of_folder(path, metric)
    with connect(url) as client:
        return of_job(client, client.job(resolve(client, name)), metric)


def _bar(found: Sequence[Found]) -> float | None:
    """The first run's target: the others are compared with it."""
    return next((one.target for one in found if one.target is not None), None)


def _recipe_metric(name: str) -> str:
    try:
        return recipes.load(name).metric
    except InvalidSpec:  # an older or newer service's
        return TOP1


def _claimed(name: str, metric: str) -> float | None:
    try:
        claim = recipes.load(name).claim
    except InvalidSpec:
        return None
    return claim.value if claim and claim.metric == metric else None


def _curves(points: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    rows: dict[str, list[tuple[int, float, float]]] = {}
    for point in points:
        for name, value in {**point["v"], "epoch": point["epoch"]}.items():
            rows.setdefault(name, []).append((point["step"], point["t"], float(value)))
    return {name: Curve(*zip(*told, strict=True)) for name, told in rows.items()}


def _machine(machine: rest.Machine) -> Machine:
    assert machine.launched_at is not None
    return Machine(
        usd_per_hour=float(machine.price_per_hour.amount),
        on_demand_usd_per_hour=float(machine.on_demand_per_hour.amount),
        start=machine.launched_at.timestamp(),
        end=machine.ended_at.timestamp() if machine.ended_at else None,
    )


def _of_one_attempt(machines: Sequence[rest.Machine]) -> list[rest.Machine]:
    """The machines that train together: one for each slot, the newest."""
    return list({machine.slot: machine for machine in machines}.values())


def _hardware(machines: Sequence[rest.Machine]) -> str:
    kinds = [f"{machine.type} ({machine.provider})" for machine in _of_one_attempt(machines)]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)) or "no machine yet"


def _on_demand(machines: Sequence[rest.Machine]) -> float | None:
    together = _of_one_attempt(machines)
    return sum(float(machine.on_demand_per_hour.amount) for machine in together) if together else None


def _export(found: Sequence[Found], folder: Path, author: str | None, email: str | None) -> None:
    if len(found) != 1:
        raise typer.BadParameter("--dawnbench writes one run; name one")
    if not author or not email:
        raise typer.BadParameter("an entry names its author: give --author and --email")
    one = found[0]
    if not one.run.epochs:
        raise Unusable(f"{one.run.name} was never measured; an entry needs epochs")
    entry = dawnbench.entry_of(
        one.run, author=author, email=email, framework=one.framework, submitted=datetime.now(UTC).date(),
        top5=one.wants_top5, misc=one.figures,
    )  # fmt: skip
    told, rows = dawnbench.write(entry)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{entry.stem}.json").write_text(told)
        (folder / f"{entry.stem}.tsv").write_text(rows)
    except OSError as error:
        raise Unusable(f"can't write into {folder}: {error.strerror}; name another folder") from error
    err.print(f"Wrote {folder / entry.stem}.json and .tsv")


def _as_json(found: Sequence[Found], bar: float | None) -> dict[str, Any]:
    return {
        "target": bar,
        "runs": [
            {
                "name": one.run.name, "model": one.run.model, "hardware": one.run.hardware, "metric": one.run.metric,
                "best": one.run.best, "last": one.run.last, "usd_per_hour": one.run.usd_per_hour, **one.figures,
                "to_target": _asdict(core.to_target(one.run, bar)) if bar is not None else None,
                "epochs": [_asdict(epoch) for epoch in one.run.epochs],
            }
            for one in found
        ],
        "seeds": _asdict(_seeds(found, bar)),
    }  # fmt: skip


def _asdict(value: Any) -> dict[str, Any] | None:
    return None if value is None else dataclasses.asdict(value)


def _seeds(found: Sequence[Found], bar: float | None) -> core.Seeds | None:
    """Of several runs of one recipe, how many reached the target."""
    measured = any(one.run.epochs for one in found)
    if bar is None or len(found) < 2 or len({one.run.model for one in found}) > 1 or not measured:
        return None
    return core.compare_seeds([one.run for one in found], bar)


def _page(found: Sequence[Found], bar: float | None) -> None:
    rows = [_row(one, bar) for one in found]
    head = f"TO {bar:.2%}" if bar is not None else "TO TARGET"
    table(("RUN", "WHAT", "BEST", head, "WAITED", "ON DEMAND", "PAID"), rows, "No runs.")
    if seeds := _seeds(found, bar):
        out.print(
            f"\n{seeds.reached} of {seeds.runs} reach the target; last score {seeds.mean:.2%} ± {seeds.spread:.2%} "
            f"({seeds.lowest:.2%} to {seeds.highest:.2%})"
        )
    if len(found) == 1:
        _details(found[0])


def _row(one: Found, bar: float | None) -> tuple[str, ...]:
    best = "" if one.run.best is None else f"{one.run.best:.2%}"
    reached = core.to_target(one.run, bar) if bar is not None else None
    if reached is None:
        missed = "" if bar is None else "not reached"
        return (one.run.name, f"{one.run.model}, {one.run.hardware}", best, missed, "", "", "")
    return (
        one.run.name, f"{one.run.model}, {one.run.hardware}", best, _seconds(reached.train_s), _seconds(reached.wait_s),
        _dollars(reached.on_demand_usd), _dollars(reached.paid_usd),
    )  # fmt: skip


def _details(one: Found) -> None:
    out.print()
    shown = [
        (f"{epoch.epoch:.2f}", _seconds(epoch.train_s), _share(epoch.top1), _share(epoch.top5), _share(epoch.score))
        for epoch in one.run.epochs
    ]
    columns = ("EPOCH", "TRAINED", "TOP-1", "TOP-5", one.run.metric)
    extra = one.run.metric not in (TOP1, TOP5)
    table(columns if extra else columns[:4], shown if extra else [row[:4] for row in shown], "Nothing measured yet.")
    if one.figures:
        out.print()
        for name, value in one.figures.items():
            out.print(f"{name:16} {value:,.4g}" if isinstance(value, float) else f"{name:16} {value}")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s" if value < 600 else f"{value / 60:.1f} min"


def _dollars(value: float | None) -> str:
    return "" if value is None else f"${value:.4f}" if value < 1 else f"${value:.2f}"

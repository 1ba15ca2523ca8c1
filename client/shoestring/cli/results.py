# SPDX-License-Identifier: Apache-2.0
"""`shoestring results`: accuracy, time and cost of runs, and export as a DAWNBench entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from shoestring_core import results as core

from shoestring import runs
from shoestring.cli.terminal import Json, Url, err, open_client, out, print_result, print_table, resolve_job_id
from shoestring.runs import TOP1, TOP5, LoadedRun


def results(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN…", help="Jobs, folders of runs, .json files of DAWNBench entries.")
    ],
    target: Annotated[
        float | None, typer.Option(help="Target accuracy; default: that of the job's goal or the recipe's claim.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Default: the recipe's.")] = None,
    dawnbench: Annotated[
        Path | None, typer.Option("--dawnbench", metavar="DIR", help="Write the run as a DAWNBench entry.")
    ] = None,
    author: Annotated[str | None, typer.Option(help="Author of the entry.")] = None,
    email: Annotated[str | None, typer.Option(help="Email of the author.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show accuracy, time and cost of runs.

    Accuracy by epoch, time and cost to the target; of several runs, how many reach it.

    \b
    shoestring results JOB
    shoestring results JOB JOB JOB --target 0.94
    shoestring results JOB davidcpage_resnet9_1v100-ec2_pytorch.json
    shoestring results JOB --dawnbench entry/ --author "Our Team" --email team@example.org
    """
    loaded = [_load(name, metric, url) for name in names]
    if target is None:  # runs are compared by the target of the first
        target = next((each.target for each in loaded if each.target is not None), None)
    if dawnbench is not None:
        _export(loaded, dawnbench, author, email)
    print_result(_to_json(loaded, target), as_json, lambda: _print_results(loaded, target))


def _load(name: str, metric: str | None, url: str | None) -> LoadedRun:
    path = Path(name)
    if path.suffix == ".json":
        return runs.from_dawnbench(path)
    if path.is_dir():
        return runs.from_folder(path, metric)
    if path.exists() and ("/" in name or path.suffix):
        raise runs.RunError(f"{name} is neither a run's folder nor the .json of an entry; give one of them, or a job")
    with open_client(url) as client:
        return runs.from_job(client, client.job(resolve_job_id(client, name)), metric)


def _export(loaded: Sequence[LoadedRun], folder: Path, author: str | None, email: str | None) -> None:
    if len(loaded) != 1:
        raise typer.BadParameter("--dawnbench exports a single run; give one")
    if not author or not email:
        raise typer.BadParameter("a DAWNBench entry needs --author and --email")
    path = runs.write_dawnbench_entry(loaded[0], folder, author, email)
    err.print(f"Wrote {path} and .tsv")


def _to_json(loaded: Sequence[LoadedRun], target: float | None) -> dict[str, Any]:
    return {
        "target": target,
        "runs": [
            {
                "name": run.name, "model": run.model, "hardware": run.hardware, "metric": run.metric,
                "best": run.best, "last": run.last, "usd_per_hour": run.usd_per_hour, **figures,
                "to_target": _asdict(core.time_to_target(run, target)) if target is not None else None,
                "epochs": [_asdict(epoch) for epoch in run.epochs],
            }
            for run, figures in ((each.run, each.figures) for each in loaded)
        ],
        "seeds": _asdict(_compare_seeds(loaded, target)),
    }  # fmt: skip


def _asdict(value: Any) -> dict[str, Any] | None:
    return None if value is None else dataclasses.asdict(value)


def _compare_seeds(loaded: Sequence[LoadedRun], target: float | None) -> core.SeedSummary | None:
    """Of several runs of one recipe, how many reached the target. None if that doesn't apply."""
    measured = any(each.run.epochs for each in loaded)
    if target is None or len(loaded) < 2 or len({each.run.model for each in loaded}) > 1 or not measured:
        return None
    return core.summarize_seeds([each.run for each in loaded], target)


def _print_results(loaded: Sequence[LoadedRun], target: float | None) -> None:
    best = f"BEST (TARGET {target:.2%})" if target is not None else "BEST"
    columns = ("RUN", "MODEL, HARDWARE", best, "TRAIN TIME", "WALL TIME", "ON-DEMAND COST", "COST")
    print_table(
        columns,
        [_row(each, target) for each in loaded],
        "No runs.",
        wrap=columns[:2],
        drop=("ON-DEMAND COST", "MODEL, HARDWARE"),
    )
    if target is None:
        err.print("Times and costs are those to a target, and there is none: give one, such as --target 0.94.")
    elif any(each.run.first_reaching(target) is None for each in loaded):
        err.print(
            "Times and costs are those to the target. What a job has cost that didn't reach it: shoestring show JOB."
        )
    if seeds := _compare_seeds(loaded, target):
        out.print(
            f"\n{seeds.reached} of {seeds.runs} reach the target; final accuracy {seeds.mean:.2%} ± {seeds.spread:.2%} "
            f"({seeds.lowest:.2%} to {seeds.highest:.2%})"
        )
    if len(loaded) == 1:
        _print_epochs(loaded[0])


def _row(loaded: LoadedRun, target: float | None) -> tuple[str, ...]:
    run = loaded.run
    best = "not evaluated" if run.best is None else f"{run.best:.2%}"
    reached = core.time_to_target(run, target) if target is not None else None
    if reached is None:
        missed = "no target" if target is None else "not reached"
        return (run.name, f"{run.model}, {run.hardware}", best, missed, "-", "-", "-")
    no_dollars = "no price" if run.usd_per_hour is None else "unknown"
    return (
        run.name, f"{run.model}, {run.hardware}", best, _format_seconds(reached.train_s),
        _format_seconds(reached.wait_s), _format_dollars(reached.on_demand_usd, no_dollars),
        _format_dollars(reached.paid_usd, no_dollars),
    )  # fmt: skip


def _print_epochs(loaded: LoadedRun) -> None:
    out.print()
    rows = [
        (f"{e.epoch:.2f}", _format_seconds(e.train_s), _percent(e.top1), _percent(e.top5), _percent(e.score))
        for e in loaded.run.epochs
    ]
    columns = ("EPOCH", "TRAIN TIME", "TOP-1", "TOP-5", loaded.run.metric)
    shown = 4 if loaded.run.metric in (TOP1, TOP5) else 5
    measured = [number for number in range(shown) if any(row[number] for row in rows)]
    print_table(
        [columns[number] for number in measured], [[row[number] for number in measured] for row in rows],
        "No epoch evaluated yet.",
    )  # fmt: skip
    if loaded.figures:
        out.print()
        for name, value in loaded.figures.items():
            out.print(f"{name:18}  {value:,.4g}" if isinstance(value, float) else f"{name:18}  {value}")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _format_seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} s" if value < 600 else f"{value / 60:.1f} min"


def _format_dollars(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"${value:.4f}" if value < 1 else f"${value:.2f}"

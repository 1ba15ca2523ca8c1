# SPDX-License-Identifier: Apache-2.0
"""`shoestring simulate`: what a policy would have cost on recorded availability, and how jobs would be scheduled; needs
no service and no login."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from rich.progress import track
from shoestring_core.decide import simulation
from shoestring_core.durations import parse_duration

from shoestring.cli.terminal import Json, err, out, print_table
from shoestring.schedule_scenario import ScenarioError, ScheduleSummary, read_scenario
from shoestring.spot_traces import SpotTrace, SpotTraceError, read_traces, select_zones

if TYPE_CHECKING:
    from shoestring_core.decide.spot.deadline_job import DeadlineJob
    from shoestring_core.decide.spot.policies import Policy

VALUES_AT_ONCE = 40_000_000
"""Of availability, a byte each, that the runs simulated together read: bounds the memory that a simulation takes."""
MAX_PRICE_RATIO = 1_000.0
"""Expected costs have seven digits: with a much larger ratio they can't tell spot from waiting."""
MAX_INTERVALS = 100_000
"""From the start to the deadline."""

NEEDS = {
    "spot": "It needs recorded availability and the job's times, such as: shoestring simulate spot --traces "
    "spot-traces --work 48h --deadline 60h --changeover 12m. github.com/skypilot-org/spot-traces has traces; "
    "docs/spot-policy.md describes their format.",
    "schedule": "It needs a file with machines, teams and jobs, such as: shoestring simulate schedule scenario.yaml. "
    "docs/operations/teams.md has one to begin with.",
}


class ExplainedCommand(typer.core.TyperCommand):
    """A command that says what is missing, and where to get it, if an argument is left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if type(error) is typer.BadParameter:  # given, and wrong
                raise
            missing = str(error.format_message()).removesuffix(".").replace("Missing", "missing", 1)
            raise typer.BadParameter(f"{missing}. {NEEDS[str(self.name)]}") from error


app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Simulate policies on recorded data, and schedules.

    \b
    shoestring simulate schedule scenario.yaml
    """


def _hours(option: str, text: str) -> float:
    try:
        return parse_duration(text) / 3600
    except ValueError as problem:
        raise typer.BadParameter(f"{option}: {problem}") from None


def _starts(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or not int(text[:9]) > 0 or len(text) > 8:
        raise typer.BadParameter(f"{text!r} is neither a number of starts nor `all`")
    return int(text)


@app.command("spot", cls=ExplainedCommand)
def simulate_spot(
    traces: Annotated[Path, typer.Option("--traces", metavar="DIR", help="Folder of traces, a JSON file per zone.")],
    work: Annotated[str, typer.Option("--work", metavar="TIME", help="Training time, such as 48h.")],
    deadline: Annotated[str, typer.Option("--deadline", metavar="TIME", help="From the start, such as 60h.")],
    changeover: Annotated[
        str, typer.Option("--changeover", metavar="TIME", help="From a machine's start until it trains.")
    ],
    price_ratio: Annotated[float, typer.Option("--price-ratio", help="On-demand price / spot price.")] = 3.14,
    starts: Annotated[
        str, typer.Option("--starts", metavar="N|all", help="Starts per trace, evenly spaced; or each one.")
    ] = "150",
    zones: Annotated[
        str | None,
        typer.Option("--zones", metavar="A,B,…", help="Run in these zones at once: one series over all of them."),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="NAME",
            help="adaptive, uniform-progress, uniform-progress-0, uniform-progress-eager or greedy.",
        ),
    ] = "adaptive",
    warm_up: Annotated[
        str, typer.Option("--warm-up", metavar="TIME", help="The policy observes so much before the start.")
    ] = "0",
    as_json: Json = False,
) -> None:
    """Simulate a job with a deadline on spot and on-demand machines.

    The cost is a share of what the work costs on-demand. --json prints a line for each run; `start` is its first
    interval in the trace. The policies: docs/spot-policy.md.

    \b
    shoestring simulate spot --traces spot-traces --work 48h --deadline 60h --changeover 0.2h
    shoestring simulate spot --traces spot-traces --work 48h --deadline 60h --changeover 12m \\
        --zones us-east-1a,us-west-2b --warm-up 10d --json
    """
    if find_spec("numpy") is None:
        raise typer.BadParameter("this command needs numpy. Run: pip install 'shoestring-core[spot]'")
    from shoestring_core.decide.spot.policies import POLICIES  # numpy is loaded by this command alone

    if policy not in POLICIES:
        raise typer.BadParameter(f"there is no policy {policy!r}. There are: {', '.join(POLICIES)}")
    number, wanted, found = _starts(starts), POLICIES[policy](), read_traces(traces)
    names = [name.strip() for name in zones.split(",")] if zones is not None else None
    series = [select_zones(found, names)] if names else [[trace] for trace in found]
    times = _hours("--work", work), _hours("--deadline", deadline), _hours("--changeover", changeover)
    observed = _hours("--warm-up", warm_up)
    jobs = [_job(group[0], *times, price_ratio) for group in series]
    results: list[dict[str, Any]] = []
    pairs = list(zip(series, jobs, strict=True))
    for group, job in track(pairs, "Simulating", console=err, transient=True, disable=not err.is_terminal):
        for run in _simulate(group, job, wanted, number, observed):
            results.append(run)
            if as_json:
                out.print(json.dumps(run))
    if not as_json:
        _print(results)


@app.command("schedule", cls=ExplainedCommand)
def simulate_schedule(
    scenario: Annotated[Path, typer.Argument(metavar="FILE", help="Machines, teams and jobs; YAML or JSON.")],
    as_json: Json = False,
) -> None:
    """Simulate when jobs of several teams start and which are evicted.

    It is the scheduler of the service, on a clock that jumps from event to event. --json prints a line for each start,
    eviction and end; `at_s` is in seconds from the beginning. The file: docs/operations/teams.md.

    \b
    shoestring simulate schedule scenario.yaml
    shoestring simulate schedule scenario.yaml --json
    """
    try:
        wanted = read_scenario(scenario)
    except ScenarioError as problem:
        raise typer.BadParameter(str(problem)) from None
    summary = ScheduleSummary(wanted)
    for step in simulation.simulate(wanted):
        summary.add(step)
        if as_json:
            out.print(json.dumps(summary.line(step)))
    if not as_json:
        columns = ("TEAM", "JOBS", "ENDED", "WAITED", "EVICTIONS", "COST")
        print_table(columns, summary.rows(), "No teams.")


def _job(trace: SpotTrace, work: float, deadline: float, changeover: float, price_ratio: float) -> DeadlineJob:
    from shoestring_core.decide.spot.deadline_job import DeadlineJob

    if not 0 < price_ratio <= MAX_PRICE_RATIO:
        raise typer.BadParameter(
            f"--price-ratio is {price_ratio}, where a number above 0 and up to {MAX_PRICE_RATIO:g} is needed"
        )
    if not work > 0:
        raise typer.BadParameter("--work must be above 0")
    job = DeadlineJob(work, deadline, changeover, price_ratio, trace.interval_s / 3600)
    if not job.is_feasible:
        raise typer.BadParameter(
            f"--deadline is too early: the work and a changeover take {work + changeover:g}h on-demand, and the last "
            f"whole interval of {trace.name} ends after {job.intervals * job.interval:g}h"
        )
    if job.intervals > MAX_INTERVALS:
        raise typer.BadParameter(f"--deadline has {job.intervals} intervals of {trace.name}, at most {MAX_INTERVALS}")
    return job


def _simulate(
    zones: Sequence[SpotTrace], job: DeadlineJob, policy: Policy, number: int | None, warm_up_h: float
) -> Iterator[dict[str, Any]]:
    """One line for each run."""
    import numpy as np
    from shoestring_core.decide.spot.simulation import simulate

    length = min(len(zone.available) for zone in zones)
    name = "+".join(zone.name for zone in zones)
    warm_up = round(warm_up_h / job.interval)
    last = length - job.intervals
    if last < warm_up:
        hours = job.interval * (warm_up + job.intervals)
        raise SpotTraceError(f"{name} has {length * job.interval:g}h of data, where {hours:g}h are needed.")
    starts = np.arange(warm_up, last + 1)
    if number is not None:
        starts = np.linspace(warm_up, last, min(number, len(starts))).astype(int)
    available = np.stack([np.frombuffer(zone.available[:length], np.uint8) == 1 for zone in zones], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(available, warm_up + job.intervals, axis=0).transpose(0, 2, 1)
    at_once = max(1, VALUES_AT_ONCE // (windows.shape[1] * windows.shape[2]))
    for first in range(0, len(starts), at_once):
        some = starts[first : first + at_once]
        outcome = simulate(job, policy, windows[some - warm_up], warm_up)
        for start, cost, missed, changeovers in zip(
            some.tolist(), outcome.cost.tolist(), outcome.missed.tolist(), outcome.changeovers.tolist(), strict=True
        ):
            yield {
                "trace": name, "start": start, "cost": round(cost, 6), "missed": missed, "changeovers": changeovers,
            }  # fmt: skip


def _print(runs: Sequence[dict[str, Any]]) -> None:
    by_trace: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_trace.setdefault(run["trace"], []).append(run)
    groups = list(by_trace.items())
    if len(groups) > 1:
        groups.append(("all", list(runs)))
    rows = [
        (
            name, str(len(own)), f"{sum(run['cost'] for run in own) / len(own):.4f}",
            str(sum(run["missed"] for run in own)), f"{sum(run['changeovers'] for run in own) / len(own):.1f}",
        )
        for name, own in groups
    ]  # fmt: skip
    print_table(("TRACE", "RUNS", "COST / ON DEMAND", "MISSED", "CHANGEOVERS"), rows, "No runs.")

# SPDX-License-Identifier: Apache-2.0
"""Follow a job in a terminal: state, latest metrics and cost, as they change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from shoestring_core import money, rest
from shoestring_core.durations import format_duration
from shoestring_core.states import JobStatus
from shoestring_core.terminal_text import printable
from shoestring_core.wording.units import dollars

from shoestring.client import Client, Lost, ServiceUnreachable, StreamEvent

STATUS_STYLES = {
    JobStatus.AWAITING_APPROVAL: "yellow",
    JobStatus.QUEUED: "yellow",
    JobStatus.LAUNCHING: "cyan",
    JobStatus.RUNNING: "green",
    JobStatus.STOPPING: "yellow",
    JobStatus.PAUSED: "magenta",
    JobStatus.SUCCEEDED: "bold green",
    JobStatus.STOPPED: "bold",
    JobStatus.FAILED: "bold red",
}
PROGRESS_S = 10.0
"""How often a job that trains says how far it is, where nothing can be drawn in place."""


def follow(client: Client, job: str, lost: Lost | None = None) -> Iterator[tuple[rest.Job, StreamEvent | None]]:
    """Yield the job whenever it changes, with the event, until it has ended and is settled, or is paused.

    `lost`: as `Client.stream`; without it, raises ServiceUnreachable when the service is away for long.
    """
    current = client.job(job)
    cursor = client.metrics(job, keys="").cursor
    yield current, None
    if is_over(current):
        return
    for event in client.stream(f"job:{current.id}", cursor=cursor, lost=lost):
        if event.name == "job":
            current = rest.Job.model_validate(event.data)
        elif event.name == "resync":
            current = _read_again(client, job, patient=lost is not None)
        elif event.name == "points":
            current = with_points(current, event)
        yield current, event
        if is_over(current):
            return


def _read_again(client: Client, job: str, *, patient: bool) -> rest.Job:
    """The job after events were missed. `patient`: however long the service is away meanwhile."""
    while True:
        try:
            return client.job(job)
        except ServiceUnreachable:
            if not patient:
                raise


def is_over(job: rest.Job) -> bool:
    return job.state == "paused" or (job.state == "ended" and job.settled_at is not None)


def with_points(job: rest.Job, event: StreamEvent) -> rest.Job:
    """Return the job with the latest values of a `points` event."""
    curves = rest.PointsMessage.model_validate(event.data).curves
    latest = job.latest | {curve.name: curve.values[-1] for curve in curves if curve.values}
    last_steps = [curve.steps[-1] for curve in curves if curve.steps and not curve.name.startswith("system/")]
    progress = job.progress.model_copy(update={"step": max([job.progress.step, *last_steps])})
    return job.model_copy(update={"latest": latest, "progress": progress})


def show_live(client: Client, job: str, console: Console) -> rest.Job:
    """Render the job in place until it is over, however long the service is away; return its final state."""
    current: rest.Job | None = None
    with Live(console=console, refresh_per_second=8) as live:
        for current, _ in follow(client, job, partial(console.print, style="yellow", markup=False)):
            live.update(render_job(current))
    assert current is not None
    return current


def print_changes(client: Client, job: str, report: Callable[[str], None], lost: Lost) -> rest.Job:
    """Report the job in lines until it is over, however long the service is away; return its final state."""
    lines, current = ProgressLines(report), None
    for current, _ in follow(client, job, lost):
        lines.update(current)
    assert current is not None
    return current


@dataclass
class ProgressLines:
    """A job in lines, for logs and pipes: its status sentence when that changes, and each PROGRESS_S how far it is."""

    report: Callable[[str], None]
    monotonic: Callable[[], float] = time.monotonic
    _sentence: str = ""
    _step: int = 0
    _told_at: float = 0.0

    def update(self, job: rest.Job) -> None:
        now, sentence = self.monotonic(), headline(job)
        if sentence != self._sentence:
            self.report(f"{job.status}: {sentence}")
        elif job.progress.step != self._step and now >= self._told_at + PROGRESS_S:
            self.report(describe_progress(job))
        else:
            return
        self._sentence, self._step, self._told_at = sentence, job.progress.step, now


def describe_progress(job: rest.Job) -> str:
    """Steps and latest metrics, in one line."""
    progress = job.progress
    total = f" of {progress.steps_total:,}" if progress.steps_total else ""
    return "  ".join([f"step {progress.step:,}{total}", *format_metrics(job.latest.items())])


def headline(job: rest.Job) -> str:
    """The first line of what is said about the job; a traceback may follow it."""
    return job.status_text.partition("\n")[0]


def render_job(job: rest.Job) -> RenderableType:
    """Render a job in a few lines: state, progress, latest metrics, cost."""
    head = Text.assemble(
        (printable(job.name), "bold"),
        "  ",
        (str(job.status), STATUS_STYLES[job.status]),
        "  ",
        printable(headline(job)),
        no_wrap=False,
        overflow="fold",
    )
    parts: list[RenderableType] = [head]
    progress = job.progress
    if progress.steps_total:
        bar = Table.grid(padding=(0, 1))
        eta = f"about {format_duration(progress.eta_s)} left" if progress.eta_s and job.state == "running" else ""
        bar.add_row(
            ProgressBar(total=progress.steps_total, completed=progress.step, width=40),
            f"step {progress.step:,} of {progress.steps_total:,}", eta,
        )  # fmt: skip
        parts.append(bar)
    if metrics := printable("  ".join(format_metrics(job.latest.items()))):
        parts.append(Text(metrics, style="dim", no_wrap=False, overflow="fold"))
    parts.append(Text(describe_cost(job.cost), no_wrap=False, overflow="fold"))
    return Group(*parts)


def format_metrics(latest: Iterable[tuple[str, float]]) -> list[str]:
    """Those of validation first; without those of machines, and the timings that results are computed from."""
    shown = (one for one in latest if not one[0].startswith(("system/", "time/")))
    return [
        f"{name} {value:.4g}" for name, value in sorted(shown, key=lambda one: (not one[0].startswith("val/"), one))
    ]


def describe_cost(cost: rest.Cost) -> str:
    """Describe what was spent and the on-demand equivalent."""
    simulated = " (simulated prices)" if cost.price_basis == "simulated" else ""
    limit = f", limit {dollars(cost.limit.amount)}" if cost.limit else ""
    state = "spent" if cost.settled else "so far"
    if money.from_decimal(cost.estimated.amount):
        state += f", {dollars(cost.estimated.amount)} of it estimated for disks and addresses"
    return f"{format_cost(cost)} {state}; on-demand equivalent {dollars(cost.on_demand.amount)}{limit}{simulated}"


def format_cost(cost: rest.Cost) -> str:
    """Dollars spent, settled or not."""
    spent = money.from_decimal(cost.spent.amount) + money.from_decimal(cost.running.amount)
    return dollars(money.to_decimal(spent))
